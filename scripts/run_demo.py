"""``make demo`` and ``make demo-coco``: run a trained model.

By default the bundled models run on generated scenes, which remain in the folder ``output_scenes``, and on mahotas's
picture of cell nuclei, which remains as ``output_cells.png`` and which they count; no network connection is needed.
Without mahotas (the extra ``demo``) only the scenes are processed.  With ``--coco`` Detectron's R-50-C4 Mask R-CNN runs
on a photo: its weights are downloaded once (resumable) and converted once; without a network connection an error
message names the file to provide.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image

from mask_rcnn.cli import demo
from mask_rcnn.cli.command import report_error
from mask_rcnn.cli.network_options import DEFAULT_MODEL
from mask_rcnn.datasets.synthetic.rich_shapes import RichShapesDataset
from mask_rcnn.io.console import print_line, print_note

ROOT = Path(__file__).resolve().parents[1]
#: The bundled model; see ``scripts/train_demo_model.py``.
DEMO_MODEL = 'shapes_mobilenet_v1_fpn.npz'
#: The default seed of the scenes.
SCENE_SEED = 2_000_016
#: The bundled model of nuclei in microscope images.
NUCLEI_MODEL = 'nuclei_mobilenet_v1_fpn.npz'
#: The default photo, from COCO's val2017.
PHOTO = 'http://images.cocodataset.org/val2017/000000000139.jpg'


def main(argv: list[str] | None = None, folder: Path = ROOT / 'modelfiles', photo_url: str = PHOTO) -> int:
    """Run the demo.

    Args:
        argv: Arguments without the program's name (default: those of the process).
        folder: Folder of the weight files.
        photo_url: Address of the default photo.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--coco', action='store_true', help="run Detectron's model on a photo")
    add('--image', help='image file (default: generated scenes; with --coco, a photo from COCO)')
    add('--output', default='output.png', help='picture to write; scenes append their names (default: %(default)s)')
    add('--scenes', type=int, default=6, help='number of scenes to generate (default: %(default)s)')
    add('--seed', type=int, default=SCENE_SEED, help='random seed of the scenes (default: %(default)s)')
    args = parser.parse_args(argv)
    output = Path(args.output)
    if args.coco:
        return _run_on_photo(args, folder, photo_url)
    if args.image:
        return _run_model(folder / DEMO_MODEL, args.image, args.output)
    return _run_on_scenes(args, output, folder)


def _run_on_scenes(args: argparse.Namespace, output: Path, folder: Path) -> int:
    scenes = output.with_name(f'{output.stem}_scenes')
    write_scenes(scenes, args.scenes, args.seed)
    status = _run_model(folder / DEMO_MODEL, scenes, output)
    first, last = (output.with_name(f'{output.stem}_scene_{number}{output.suffix}') for number in (1, args.scenes))
    pictures = [str(first) if first == last else f'{first} to {last}']
    results = [output.with_suffix('.json')]
    cells = output.with_name(f'{output.stem}_cells.png')
    if copy_cells(cells):
        picture = output.with_name(f'{output.stem}_nuclei{output.suffix}')
        status = _run_model(folder / NUCLEI_MODEL, cells, picture) or status
        pictures.append(str(picture))
        results.append(picture.with_suffix('.json'))
    else:
        print_note("the picture of nuclei needs mahotas: pip install -e '.[demo]'")
    if status == 0:
        print_line(f'pictures: {", ".join(pictures)}; detections: {", ".join(map(str, results))}')
    return status


def _run_on_photo(args: argparse.Namespace, folder: Path, photo_url: str) -> int:
    # Imported here because the demo without --coco needs neither the converters nor an HTTP client.
    from mask_rcnn.cli import convert
    from mask_rcnn.weights import download

    weights = folder / DEFAULT_MODEL
    if not weights.exists():
        source = folder / convert.DEFAULT_INPUT
        status = 0 if source.exists() else download.main(folder)
        status = status or convert.main(['--input', str(source), '--output', str(weights)])
        if status:
            return status
    try:
        image = args.image or download.fetch(photo_url, folder / Path(photo_url).name)
    except download.DownloadError as error:
        return report_error(f'{error}; name a photo of your own: make demo-coco IMAGE=photo.jpg')
    return _run_model(weights, image, args.output)


def write_scenes(folder: Path, n_scenes: int, seed: int, size: int = 512) -> None:
    """Write generated scenes as ``scene_1.png``, ``scene_2.png``, ... into a folder, in place of earlier scenes.

    Args:
        folder: The folder, which is created if it is missing.
        n_scenes: Number of scenes.
        seed: Random seed.
        size: Height and width in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob('scene_*.png'):
        earlier.unlink()
    scenes = RichShapesDataset(n_scenes, size=size, seed=seed)
    for i in range(n_scenes):
        rgb = scenes[i].image.transpose(1, 2, 0).astype('uint8')
        Image.fromarray(rgb).save(folder / f'scene_{i + 1}.png')


def copy_cells(path: Path) -> bool:
    """Copy mahotas's picture of cells, a fluorescence microscope's image of their nuclei.

    Args:
        path: The file to write.

    Returns:
        Whether the picture is copied; ``False`` without mahotas.
    """
    try:
        from mahotas.demos import image_path
    except ImportError:
        return False
    shutil.copyfile(image_path('nuclear.png'), path)
    return True


def _run_model(model: Path, image: str | Path, output: str | Path) -> int:
    json_file = Path(output).with_suffix('.json')
    options = {'modelfile': model, 'image': image, 'output': output, 'json': json_file, 'max-detections': 0}
    words = [word for name, value in options.items() for word in (f'--{name}', str(value))]
    return demo.main([*words, '--bn2affine', '--contour'])


if __name__ == '__main__':
    sys.exit(main())
