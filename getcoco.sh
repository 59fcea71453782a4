#!/bin/sh
# Download and unpack COCO 2017; see --help.  POSIX sh; needs curl or wget, and unzip or python3.
set -eu

base=${COCO_URL:-http://images.cocodataset.org}
program=$(basename -- "$0")
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/COCO
tries=${COCO_TRIES:-5}
pause=${COCO_PAUSE:-5}
keep=no
unpacking=
part_file=
n_created=0

usage() {
    cat <<END
usage: $program [--dir FOLDER] [--keep] [PART ...]

Download COCO 2017 and unpack it into COCO/ beside this script. An interrupted download resumes, and existing
files are kept, so the command can be repeated until it succeeds.

PART       train, val or annotations (default: all three)
--dir      folder for the data instead of COCO/
--keep     keep the zip files

part         download  on disk   becomes
annotations  0.25 GB    0.8 GB   annotations/*_train2017.json, annotations/*_val2017.json
val          0.82 GB    0.8 GB   val2017/*.jpg, 5000 images
train        19.3 GB   19.5 GB   train2017/*.jpg, 118287 images

Exit status: 0, 1 if something failed, 2 for bad arguments.
END
}

fail() {
    printf '%s: %s\n' "$program" "$1" >&2
    exit "${2:-1}"
}

say() {
    printf '%s\n' "$1"
}

# describe PART: set name (of folder and zip), url, zip_size in bytes, n_files and pattern; sizes are those of
# the files that images.cocodataset.org serves.
describe() {
    case $1 in
        train)
            name=train2017 pattern='*.jpg' url=$base/zips/train2017.zip
            zip=train2017.zip zip_size=${COCO_TRAIN_SIZE:-19336861798} n_files=${COCO_TRAIN_FILES:-118287}
            disk_size=$((zip_size / 100 * 103)) ;;
        val)
            name=val2017 pattern='*.jpg' url=$base/zips/val2017.zip
            zip=val2017.zip zip_size=${COCO_VAL_SIZE:-815585330} n_files=${COCO_VAL_FILES:-5000}
            disk_size=$((zip_size / 100 * 103)) ;;
        annotations)
            name=annotations pattern='*2017.json' url=$base/annotations/annotations_trainval2017.zip
            zip=annotations_trainval2017.zip zip_size=${COCO_ANNOTATIONS_SIZE:-252907541}
            n_files=${COCO_ANNOTATIONS_FILES:-6} disk_size=$((zip_size / 10 * 35)) ;;
    esac
}

count_files() {  # FOLDER PATTERN
    find "$1" -type f -name "$2" | wc -l | tr -d ' '
}

size_of() {  # FILE: size in bytes, 0 if the file does not exist
    if [ -f "$1" ]; then wc -c < "$1" | tr -d ' '; else echo 0; fi
}

# Succeed if the described part is complete.  Fail for a folder that holds anything else: it may be the user's.
is_there() {
    [ -e "$folder/$name" ] || return 1
    found=$(count_files "$folder/$name" "$pattern")
    [ "$found" -eq "$n_files" ] ||
        fail "$folder/$name holds $found of $n_files files; move it away and run this again"
}

check_disk() {  # PART ...: check the free space for all missing parts
    needed=0 largest=0
    for part in "$@"; do
        describe "$part"
        ! is_there || continue
        missing=$((zip_size - $(size_of "$folder/$zip") - $(size_of "$folder/$zip.part")))
        [ "$missing" -ge 0 ] || missing=0
        needed=$((needed + disk_size))
        if [ "$keep" = yes ]; then
            needed=$((needed + missing))
        elif [ "$missing" -gt "$largest" ]; then
            largest=$missing
        fi
    done
    needed=$(((needed + largest) / 1024))
    free=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$needed" ] ||
        fail "$folder needs $((needed / 1024)) MB of disk space, but only $((free / 1024)) MB are free"
}

# Download, resuming FILE if it exists.  Set status, and cause for the case that bytes are missing.
fetch() {  # URL FILE
    status=0
    if command -v curl > /dev/null; then
        if [ -t 2 ]; then show=--progress-bar; else show=--silent; fi
        curl --fail --location --connect-timeout 30 --speed-limit 1 --speed-time 60 $show \
            --continue-at - --output "$2" "$1" || status=$?
        if [ $status -eq 33 ]; then  # the server does not support resuming: start again next time
            rm -f "$2"
        fi
        tool=curl
    else
        if [ -t 2 ]; then show=; else show=--quiet; fi
        wget $show --continue --tries=1 --timeout=60 --output-document="$2" "$1" || status=$?
        tool=wget
    fi
    host=${1#*://}
    host=${host%%/*}
    host=${host##*@}
    case $tool-$status in
        *-0 | curl-18 | curl-52 | curl-56) cause="the connection to $host ended early" ;;
        curl-5) cause="the proxy for $host is not found" ;;
        curl-6) cause="the host $host is not found (no network?)" ;;
        curl-7) cause="$host cannot be reached (no network, or a firewall?)" ;;
        curl-22 | wget-8) cause="$host refuses the file" ;;
        curl-23 | wget-3) cause="$2 cannot be written (is the disk full?)" ;;
        curl-28) cause="$host does not answer in time" ;;
        curl-33) cause="$host cannot resume downloads" ;;
        curl-35 | curl-51 | curl-53 | curl-54 | curl-58 | curl-59 | curl-60 | curl-77 | wget-5)
            cause="no secure connection to $host (TLS)" ;;
        wget-4) cause="the host $host is not found or cannot be reached (no network?)" ;;
        *) cause="$tool to $host ended with status $status" ;;
    esac
}

# Download the described zip; it gets its final name when it is complete.
download() {
    if [ -e "$folder/$zip" ]; then
        size=$(size_of "$folder/$zip")
        [ "$size" -ne "$zip_size" ] || return 0
        fail "$folder/$zip has $size bytes instead of $zip_size; delete it and run this again"
    fi
    part_file=$folder/$zip.part
    size=$(size_of "$part_file")
    try=1 cause=
    while [ "$size" -ne "$zip_size" ]; do
        [ "$try" -le "$tries" ] ||
            fail "$url: $size of $zip_size bytes arrived in $tries tries: $cause; run this again to resume"
        if [ "$try" -gt 1 ]; then sleep "$pause"; fi
        if [ "$size" -gt "$zip_size" ]; then rm -f "$part_file"; size=0; fi
        say "downloading $url ($((zip_size / 1000000)) MB, $((size / 1000000)) MB already downloaded)"
        fetch "$url" "$part_file"
        size=$(size_of "$part_file")
        try=$((try + 1))
    done
    mv -f "$part_file" "$folder/$zip"
}

unzip_into() {  # ZIP FOLDER: also checks the checksums in the zip
    if command -v unzip > /dev/null; then
        unzip -qq -o "$1" -d "$2" > /dev/null 2>&1
    else
        python3 -m zipfile -e "$1" "$2" > /dev/null 2>&1
    fi
}

# Succeed if the zip itself is damaged (and not the disk full or the tool broken).
is_damaged() {  # ZIP
    status=0
    if command -v unzip > /dev/null; then
        unzip -tqq "$1" > /dev/null 2>&1 || status=$?
        case $status in 2 | 3 | 9 | 51) return 0 ;; *) return 1 ;; esac
    fi
    python3 -c '
import sys, zipfile, zlib
try:
    sys.exit(3 if zipfile.ZipFile(sys.argv[1]).testzip() is not None else 0)
except (zipfile.BadZipFile, zlib.error):
    sys.exit(3)' "$1" > /dev/null 2>&1 || status=$?
    [ $status -eq 3 ]
}

# Unpack the described zip.  Its folder gets its final name when it is complete.
unpack() {
    say "unpacking $folder/$zip"
    unpacking=$folder/.$name.unpacking
    rm -rf "$unpacking"
    mkdir "$unpacking"
    if ! unzip_into "$folder/$zip" "$unpacking"; then
        if is_damaged "$folder/$zip"; then
            rm -f "$folder/$zip"
            fail "$zip was damaged and is deleted; run this again"
        fi
        fail "$folder/$zip cannot be unpacked (is the disk full?)"
    fi
    found=0
    [ ! -d "$unpacking/$name" ] || found=$(count_files "$unpacking/$name" "$pattern")
    [ "$found" -eq "$n_files" ] || fail "$folder/$zip holds $found files $name/$pattern instead of $n_files"
    mv "$unpacking/$name" "$folder/$name"
    rm -rf "$unpacking"
    if [ "$keep" = no ]; then rm -f "$folder/$zip"; fi
}

# Remove what is half done: the unpacked files, an empty download, and folders that this run created and left empty.
clean() {
    if [ -n "$unpacking" ]; then rm -rf "$unpacking"; fi
    if [ -n "$part_file" ] && [ ! -s "$part_file" ]; then rm -f "$part_file"; fi
    while [ "$n_created" -gt 0 ] && rmdir "$folder" 2> /dev/null; do
        folder=$(dirname -- "$folder")
        n_created=$((n_created - 1))
    done
}

parts=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --dir)
            [ $# -ge 2 ] && [ -n "$2" ] || fail '--dir needs a folder' 2
            folder=$2; shift ;;
        --dir=?*) folder=${1#--dir=} ;;
        --keep) keep=yes ;;
        train | val | annotations) parts="$parts $1" ;;
        *) fail "$1 is neither an option nor a part of COCO (train, val, annotations); see --help" 2 ;;
    esac
    shift
done
[ -n "$parts" ] || parts='annotations val train'

command -v curl > /dev/null || command -v wget > /dev/null || fail 'needs curl or wget'
command -v unzip > /dev/null || command -v python3 > /dev/null || fail 'needs unzip or python3'
parent=$folder
while [ ! -d "$parent" ]; do
    parent=$(dirname -- "$parent")
    n_created=$((n_created + 1))
done
mkdir -p -- "$folder" 2> /dev/null || fail "cannot create the folder $folder"
folder=$(CDPATH='' cd -- "$folder" && pwd)
[ -w "$folder" ] || fail "cannot write in the folder $folder"
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The parts are words without spaces.
# shellcheck disable=SC2086
check_disk $parts
for part in $parts; do
    describe "$part"
    if is_there; then
        say "$folder/$name exists ($n_files files)"
    else
        download
        unpack
        say "$folder/$name is ready ($n_files files)"
    fi
done
