// Pictures that are chosen, photographed, dropped or pasted.

const element = (id) => document.getElementById(id);

/**
 * Call a function for each picture file that the user gives.
 *
 * @param {object} callbacks
 * @param {(file: File) => void} callbacks.onFile
 * @param {(message: string) => void} callbacks.onProblem
 */
export function acceptFiles({ onFile, onProblem }) {
  const take = (files, problem) => {
    if (files.length) {
      onFile(files[0]);
    } else {
      onProblem(problem);
    }
  };
  for (const [button, input] of [['choose', 'file'], ['shoot', 'photo']]) {
    element(button).addEventListener('click', () => element(input).click());
    element(input).addEventListener('change', (event) => {
      const files = [...event.target.files];
      event.target.value = ''; // the same file may be chosen again
      take(files, '');
    });
  }
  document.addEventListener('paste', (event) => {
    if (event.target.closest?.('input[type=text], textarea')) {
      return;
    }
    event.preventDefault();
    take([...event.clipboardData.files], 'The clipboard has no picture. Copy a picture, not its address.');
  });
  acceptDrops((files) => take(files, 'That is not a file. Save the picture first, and drop its file.'));
}

function acceptDrops(onDrop) {
  let depth = 0; // dragenter and dragleave also come from the elements of the page
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle('dragging', depth > 0);
  };
  window.addEventListener('dragenter', () => mark(1));
  window.addEventListener('dragleave', () => mark(-1));
  window.addEventListener('dragover', (event) => event.preventDefault());
  window.addEventListener('drop', (event) => {
    event.preventDefault();
    mark(-depth);
    onDrop([...event.dataTransfer.files]);
  });
}
