"""A lint of the English in docstrings, comments, help texts and error messages (docs/STYLE.md)."""

import ast
import bisect
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / 'mask_rcnn').rglob('*.py'))
FILES = PACKAGE + sorted(
    path
    for place in ('scripts', 'utils', 'demo.py', 'train.py')
    for path in ((ROOT / place).rglob('*.py') if (ROOT / place).is_dir() else [ROOT / place])
    if path.is_file()
)

MAX_COLUMNS = 120
# Several times faster than tokenize; exact for what Python 3.10 parses (no quotes inside of an f-string's fields).
STRING_OR_COMMENT = re.compile(r"""('{3}|"{3})(?:\\.|[^\\])*?\1|(['"])(?:\\.|[^\\\n])*?\2|\#[^\n]*""", re.DOTALL)
PROSE = ('docstring', 'comment', 'message')


class Pattern(NamedTuple):
    """A construction to avoid.

    ``regex`` is searched, ignoring case, in text whose white space is collapsed to single spaces and whose code in
    backquotes is replaced by ``x``.  ``bad`` must match and ``good`` must not: they keep the pattern itself tested.
    """

    name: str
    regex: str
    write: str
    bad: str
    good: str
    kinds: tuple[str, ...] = PROSE


PATTERNS = [
    Pattern(
        'is no',
        r'(?<!there )\b(?:is|are|was|were) no\b(?! (?:more|less|longer|faster|\w+er than)\b)',
        '"is not a ...", "there is no ..."',
        'x is no number',
        'there is no zip archive; it is no longer open; more are no faster',
    ),
    Pattern(
        'has not the',
        r'\b(?:has|have|had) not(?: (?:the|an?|all|any|its|their)\b|(?=[,.;:)]|$))',
        '"does not have the ..."',
        'has not the length that it declares',
        'does not have the length; it has not been read',
    ),
    Pattern(
        'from N on',
        r'\bfrom (?:\S+ ){1,3}on(?=[,.;:)]|$)|\bfrom (?:which|where|then|there) on\b',
        '"N or more", ">= N", "starting at N"',
        'IoU from which on a box is suppressed',
        'copied from the host on the side stream',
    ),
    Pattern(
        'nobody',
        r'\b(?:nobody|somebody|anybody|everybody|whoever|whosoever)\b',
        'name the subject, or use the passive',
        'nobody asks for it',
        'no function uses it',
    ),
    Pattern(
        'archaic word',
        r'\b(?:lest|anew|besides|but for|hitherto|whence|thereof|whereof|wherein|whereby)\b',
        'lest: "so that ... not"; anew: "again"; besides: "in addition to", "apart from"; but for: "except"',
        'all but for the last',
        'all except the last; beside it; at least one',
    ),
    Pattern(
        'behind',
        r'\bbehind\b(?! (?:an?|the|another|other|its) (?:thing|shape|object|proxy|firewall)s?\b)',
        '"after" (order), "past" (position)',
        'the pooling behind conv1',
        'the pooling after conv1; the part hidden behind another shape',
    ),
    Pattern(
        'What ... as a noun',
        r'^(?:Return |Returns |Do |In |Of |By |To )?what\b|(?<=[\w)]: )(?-i:What)\b',
        'name the thing: "The detections of one image."',
        'What a model found in one image.',
        'The detections of one image: boxes, and what follows from them.',
        ('docstring', 'comment'),
    ),
    Pattern(
        'question as a noun',
        r'^(?:Whether|How(?! to)|Which|Why|Who|(?:In|From|To|By|At) which)\b'
        r'|^(?:Where|When)\b(?![^.]*, )',
        '"True if ..." or "Return whether ...", "The number of ...", "The place of ..."',
        'Whether a gradient is needed.',
        'Return whether a gradient is needed. Args: x: Whether it is masked.',
        ('docstring',),
    ),
    Pattern(
        'Return which',
        r'^Returns? (?:which|how|where|why)\b',
        'name the result: "Return the indices of ...", "Return the number of ..."',
        'Return how many GPUs there are.',
        'Return the number of GPUs; return whether one is free.',
        ('docstring',),
    ),
    Pattern(
        'Of a ...:',
        r'(?:^|(?<=[.;:] ))(?-i:Of) (?:an?|the|all|each|every|some|one|two|several)\b',
        'start with the subject: "seed: Seed of the ..."',
        'Of a batch normalisation: in test mode.',
        'Batch normalisation: in test mode. One of the two.',
        ('docstring', 'comment'),
    ),
    Pattern(
        ', too',
        r', too(?=[.,;:)]|$)',
        '"also" before the verb',
        'The masks are flipped, too.',
        'The masks are also flipped; they are too large.',
    ),
    Pattern(
        'so many',
        r'\bso many\b(?! \w+ that)|\bas many(?=[,.;:)]|$| (?:of|at|in|for|most)\b)',
        'name the number: "the first `n` stages", "the same number of ..."',
        'The first so many stages are frozen.',
        'There are as many masks as boxes; so many boxes that it fails.',
    ),
    Pattern(
        'cut off', r'\bcut(?:s|ting)? off\b', '"ReLU", "clip", "truncate"', 'cut off what is negative', 'apply ReLU'
    ),
    Pattern(
        'minimal filtering',
        r'\bminimal filtering\b',
        '"Winograd convolution"',
        'by minimal filtering',
        'by Winograd convolution',
    ),
    Pattern(
        'looks at',
        r'\blook(?:s|ed|ing)? (?:\w+ )?at\b',
        '"reads", "uses", "checks", "processes"',
        'the head looks at the features',
        'the head reads the features and looks up their names',
    ),
    Pattern(
        'learns',
        r'\blearn(?:s|t)?\b',
        '"is trained" (parameters), "is sampled for training" (RoIs, anchors)',
        'RoIs that learn',
        'RoIs sampled per image; the learning rate of learnable parameters',
    ),
    Pattern("one's own", r"\bones?'s? own\b", '"your own", "custom"', "data of one's own", 'your own dataset'),
    Pattern(
        'one wants',
        r'\b(?:if|what|that|when|as|unless|which|where) one (?:wants|needs|can|may|must|would)\b',
        '"you", or the passive',
        'what one needs to use them',
        'the arrays needed; the one needed',
    ),
    Pattern(
        'just the',
        r'\bjust (?:the|this|that) (?:threshold|limit|border|edge|minimum|maximum|value|size)\b',
        '"exactly the ..."',
        'an IoU of just the threshold',
        'an IoU just below the threshold; just the boxes',
    ),
    Pattern(
        'says',
        r'\b(?:say|says|said|unsaid)\b(?<!, say)',
        '"states", "declares", "contains", "returns"; in an imperative "Print", "Return"',
        'the length that the file says',
        'the length that the file declares (100 bytes, say)',
    ),
    Pattern(
        'told',
        r'\b(?:tells?|told)\b(?! (?:\w+ ){0,3}apart\b)',
        '"is given", "indicates", "determines"; Tell X by Y: "Determine X from Y"',
        'the sampler is told the number',
        'the sampler is given the number; told apart by their names',
    ),
    Pattern(
        'wants',
        r'(?<!you )\b(?:wants?|wanted|unwanted)\b',
        '"needs", "expects", "requires"; unwanted: "excluded"',
        'the layout that the layer wants',
        'the layout that the layer expects; if you want it',
    ),
    Pattern(
        'asks',
        r'\b(?:asks?|asked|asking)\b',
        '"requests", "requires", "calls"; if asked to: "if `relu` is set"',
        'apply ReLU, if asked to',
        'apply ReLU if `relu` is set; the tasks',
    ),
    Pattern(
        'as whose',
        r'\b(?:as|than) whose\b|\b(?<!same )as which\b',
        'start a new sentence that names the noun again',
        'as float32, as which losses are computed',
        'the type in which it is stored; the same as which it had',
    ),
    Pattern(
        'GPU form',
        r"\b(?:GPU|CPU|NumPy|CuPy)(?:'s)? forms?\b|\b(?:both|two) forms\b",
        '"the GPU implementation"',
        'The GPU form: CuPy arrays.',
        'The GPU implementation.',
    ),
    Pattern(
        'data set', r'\bdata sets?\b', '"dataset"', 'a data set of pictures', 'a dataset of images; the data settings'
    ),
    Pattern(
        'enlarge',
        r'\benlarg(?:e|es|ed|ing|ement)\b',
        '"upsample" (feature maps), "upscale" (images), "extend" (boxes)',
        'the coarse map is enlarged',
        'the coarse map is upsampled',
    ),
    Pattern(
        'body',
        r'(?<!loop )(?<!request )(?<!response )(?<!function )(?<!message )(?<!\.)'
        r'\b(?:body|bodies)\b(?!:| \(|\.\w)',
        '"backbone" (of a network), "block" (of a with statement)',
        "the body's stages",
        "the backbone's stages; the loop body; body (Link): Its stages.",
    ),
    Pattern(
        'ours',
        r'\b(?:ours|theirs)\b',
        '"the native format", "this library\'s", or repeat the noun',
        'a model of ours',
        'a model in the native format; our own hours',
    ),
]

# Files in which a word has its literal meaning.
LITERAL = {('behind', 'rich_shapes.py')}
# Files whose methods are named after what they implement: the opcodes of pickle.
SELF_EXPLANATORY = {'safe_pickle.py'}


class Text(NamedTuple):
    """A docstring, a comment or a message: its words with single spaces between them, and the line of each word."""

    kind: str
    words: str
    starts: list[int]
    lines: list[int]

    def line_at(self, offset: int) -> int:
        """Return the line in the file of the character at ``offset``."""
        return self.lines[bisect.bisect_right(self.starts, offset) - 1]


class Module(NamedTuple):
    """A source file, parsed once for all tests."""

    lines: list[str]
    nodes: list[ast.AST]
    texts: list[Text]

    @property
    def docstrings(self) -> Iterator[tuple[int, str]]:
        """Lines and texts of the strings that are statements: docstrings and the descriptions under fields."""
        return _docstrings(self.nodes)


def _text(kind: str, line: int, raw: str) -> Text:
    """Collapse the white space of ``raw``, whose first line is ``line``; code in backquotes becomes ``x``."""
    if '`' in raw:
        raw = re.sub(r'``.+?``|`[^`]+`', lambda code: re.sub(r'[^\n]', 'x', code[0]), raw, flags=re.DOTALL)
    words, starts, lines, length = [], [], [], 0
    for number, content in enumerate(raw.split('\n'), line):
        for word in content.split():
            words.append(word)
            starts.append(length)
            lines.append(number)
            length += len(word) + 1
    return Text(kind, ' '.join(words), starts, lines)


def _docstrings(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments; those on consecutive lines without code are one comment."""
    start, block, line, position = 0, [], 1, 0
    for token in STRING_OR_COMMENT.finditer(source):
        if not token[0].startswith('#'):
            continue
        line, position = line + source.count('\n', position, token.start()), token.start()
        comment = token[0].lstrip('#:! ')
        if comment.startswith(('noqa', 'type:', 'pragma', 'fmt:', 'ruff:', 'pylint:')):
            continue
        if source[source.rfind('\n', 0, position) + 1 : position].strip():
            yield line, comment
            continue
        if block and line != start + len(block):
            yield start, '\n'.join(block)
            block = []
        start = start if block else line
        block.append(comment)
    if block:
        yield start, '\n'.join(block)


def _literals(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield lines and texts of the string literals in an expression that formats or joins them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif isinstance(node, ast.JoinedStr):
        yield node.lineno, ''.join(part.value if isinstance(part, ast.Constant) else 'x' for part in node.values)
    elif isinstance(node, ast.BinOp):
        yield from _literals(node.left)
        if isinstance(node.op, ast.Add):
            yield from _literals(node.right)
    elif isinstance(node, ast.IfExp):
        yield from _literals(node.body)
        yield from _literals(node.orelse)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'format':
        yield from _literals(node.func.value)


def _messages(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """Yield argparse's help texts and the messages of raised errors."""
    for node in nodes:
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            arguments = node.exc.args
        elif isinstance(node, ast.Call):
            arguments = [word.value for word in node.keywords if word.arg in ('help', 'description', 'epilog')]
            if isinstance(node.func, ast.Attribute) and node.func.attr == 'error':
                arguments.extend(node.args)
        else:
            continue
        for argument in arguments:
            yield from _literals(argument)


def parse(source: str) -> Module:
    """Parse Python source."""
    nodes = list(ast.walk(ast.parse(source)))
    found = (('docstring', _docstrings(nodes)), ('comment', _comments(source)), ('message', _messages(nodes)))
    texts = [_text(kind, line, raw) for kind, parts in found for line, raw in parts]
    return Module(source.split('\n'), nodes, [text for text in texts if text.words])


@functools.cache
def read(path: Path) -> Module:
    """Parse a file, once per process."""
    return parse(path.read_text(encoding='utf-8'))


@functools.cache
def _compiled(regex: str) -> re.Pattern:
    return re.compile(regex, re.IGNORECASE)


def violations(texts: list[Text], name: str = '') -> Iterator[tuple[int, Pattern, str]]:
    """Yield line, pattern and context of every match in the texts of a file called ``name``."""
    for pattern in PATTERNS:
        search = _compiled(pattern.regex).finditer
        for text in texts:
            if text.kind in pattern.kinds and (pattern.name, name) not in LITERAL:
                for match in search(text.words):
                    context = text.words[max(0, match.start() - 30) : match.end() + 30]
                    yield text.line_at(match.start()), pattern, context


def public_definitions(module: Module, methods: bool = True) -> Iterator[ast.AST]:
    """Yield a module, its public functions and classes, and the public methods of classes without a base class.

    Methods of derived classes are left out because most override documented ones.
    """
    pending = module.nodes[:1]
    while pending:
        scope = pending.pop()
        yield scope
        if isinstance(scope, ast.Module) or (isinstance(scope, ast.ClassDef) and not scope.bases and methods):
            pending.extend(
                node
                for node in scope.body
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
                and not node.name.startswith('_')
            )


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _fail_if(found: Iterable[tuple[Path, int, str]]) -> None:
    """Fail with one line for each violation: file, line, text and advice."""
    lines = [f'{path}:{line}: {text}' for path, line, text in sorted((_name(path), *rest) for path, *rest in found)]
    if lines:
        pytest.fail('\n'.join([f'{len(lines)} to rewrite (docs/STYLE.md)', *lines]), pytrace=False)


def _is_called_own(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == 'own') or (
        isinstance(node, ast.arg) and node.arg == 'own'
    )


# One test per rule, not one per rule and file: the call of a test takes longer than most files.


def test_prose_follows_the_style_guide():
    _fail_if(
        (path, line, f'"{context}" ({pattern.name}); write {pattern.write}')
        for path in FILES
        for line, pattern, context in violations(read(path).texts, path.name)
    )


def test_no_variable_is_called_own():
    _fail_if(
        (path, node.lineno, '"own" as a variable; write the name of the element, such as "level_logits"')
        for path in FILES
        for node in read(path).nodes
        if _is_called_own(node)
    )


def test_public_definitions_have_docstrings():
    _fail_if(
        (path, getattr(node, 'lineno', 1), f'{getattr(node, "name", "the module")} has no docstring')
        for path in PACKAGE
        for node in public_definitions(read(path), path.name not in SELF_EXPLANATORY)
        if node.body and ast.get_docstring(node) is None
    )


def test_the_first_line_of_a_docstring_is_a_sentence():
    found = []
    for path in PACKAGE:
        module = read(path)
        for line, text in module.docstrings:
            first = text.strip().split('\n')[0].rstrip()
            if not first.endswith(('.', ':')):
                found.append((path, line, f'"{first}"; the first line must end with a full stop'))
            if len(module.lines[line - 1]) > MAX_COLUMNS:
                found.append((path, line, f'"{first}"; the first line must fit in {MAX_COLUMNS} columns'))
    _fail_if(found)


def _names_found(kind: str, text: str) -> set[str]:
    return {pattern.name for _, pattern, _ in violations([_text(kind, 1, text)])}


@pytest.mark.parametrize('pattern', PATTERNS, ids=lambda pattern: pattern.name)
def test_each_pattern_finds_its_bad_example(pattern):
    assert all(pattern.name in _names_found(kind, pattern.bad) for kind in pattern.kinds)


@pytest.mark.parametrize('pattern', PATTERNS, ids=lambda pattern: pattern.name)
def test_each_pattern_accepts_its_good_example(pattern):
    assert not any(pattern.name in _names_found(kind, pattern.good) for kind in pattern.kinds)


def test_pattern_names_are_unique():
    assert len({pattern.name for pattern in PATTERNS}) == len(PATTERNS)


def test_prose_is_found_in_docstrings_comments_and_messages():
    source = '\n'.join(
        [
            '"""What a model',
            'found."""',
            'x = 1  # nobody uses it',
            '# two lines, from which',
            '# on it is one comment',
            "parser.add_argument('--x', help='a file that '",
            "                    'is no archive')",
            "raise ValueError(f'{x} has not the length')",
            "text = '# behind'  # a string that is not prose, and `behind` in backquotes",
        ]
    )
    found = [(line, pattern.name) for line, pattern, _ in violations(parse(source).texts)]
    assert sorted(found) == [
        (1, 'What ... as a noun'),
        (3, 'nobody'),
        (4, 'from N on'),
        (6, 'is no'),
        (8, 'has not the'),
    ]
