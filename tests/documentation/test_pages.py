"""The blocks of pages are found with their marks."""

import pytest

from tests.support.pages import Block, find_blocks

TEXT = """\
# Title

```sh
mask-rcnn info a
mask-rcnn info b
```

1. A list:

   <!-- not run: needs a camera -->
   ```sh
   mask-rcnn demo --camera 0
   ```

<!-- runs until it is stopped -->
```sh
mask-rcnn serve
```
<!-- not run: not directly before a block -->

```python
import mask_rcnn
```
"""


def test_blocks_have_their_marks():
    assert find_blocks(TEXT, 'page.md') == [
        Block('page.md', 3, 'sh', 'mask-rcnn info a\nmask-rcnn info b\n'),
        Block('page.md', 11, 'sh', 'mask-rcnn demo --camera 0\n', 'needs a camera'),
        Block('page.md', 16, 'sh', 'mask-rcnn serve\n', None, True),
        Block('page.md', 21, 'python', 'import mask_rcnn\n'),
    ]
    assert str(find_blocks(TEXT, 'page.md')[0]) == 'page.md:3'


def test_a_block_without_an_end_is_named():
    with pytest.raises(ValueError, match=r'^page\.md:2: the block does not end$'):
        find_blocks('text\n```sh\nls\n', 'page.md')
