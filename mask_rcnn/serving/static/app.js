// The page of "mask-rcnn serve": a picture or the camera, its objects, and their list.

import { LOWEST_SCORE, detect, fetchModel } from './api.js';
import { announce } from './announcer.js';
import { acceptFiles } from './input.js';
import { ObjectList } from './list.js';
import { Live } from './live.js';
import { readObjects, summarise } from './objects.js';
import { decode, matchSize } from './picture.js';
import { renderPng, saveFile } from './save.js';
import { Stage } from './stage.js';

const element = (id) => document.getElementById(id);
const CHIPS = ['masks', 'boxes', 'labels', 'keypoints'];

const main = element('main');
const slider = element('score');
const stage = new Stage(
  (object) => highlight(object),
  (object) => select(object),
);
const list = new ObjectList(
  element('objects'),
  (object) => highlight(object),
  (object) => select(object),
);
const live = new Live(element('video'), { onFrame: showFrame, onNotice: showError, onStop: showStopped });

/** The model's description as far as the page uses it; the real one replaces it. */
let model = { name: '', limits: { max_bytes: Infinity } };
/** The picture's file and name, the server's answer as text, all objects, and the selected one. */
let current = { file: null, name: '', text: '', objects: [], selected: null };
let controller = new AbortController();

acceptFiles({ onFile: openPicture, onProblem: showError });
element('camera').addEventListener('click', () => (live.isRunning ? live.stop() : startCamera()));
element('retry').addEventListener('click', () => openPicture(current.file));
element('save-png').addEventListener('click', savePng);
element('save-json').addEventListener('click', saveJson);
slider.addEventListener('input', () => refresh());
for (const name of CHIPS) {
  element(`show-${name}`).addEventListener('change', drawAll);
}
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') {
    select(null);
  }
});
showModel();

async function showModel() {
  try {
    model = await fetchModel();
    element('model').textContent = model.name;
    slider.value = model.score.picture;
    refresh();
  } catch (error) {
    showError(error.message);
  }
}

/** Detect the objects of a file and show them. */
async function openPicture(file) {
  live.stop();
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  clear({ file, name: file.name ?? 'picture' });
  setBusy(true);
  try {
    checkSize(file);
    const bitmap = await decode(file, isTurned());
    if (signal.aborted) {
      return;
    }
    setPicture(bitmap);
    const { text, answer } = await detect(file, signal);
    const fitted = await matchSize(file, bitmap, answer.image, signal);
    if (!signal.aborted) {
      setPicture(fitted);
      showAnswer(text, answer);
      element('info').textContent = `${sizeText(answer)} · ${Math.round(answer.time_ms)} ms`;
    }
  } catch (error) {
    if (!signal.aborted) {
      fail(error);
    }
  } finally {
    if (signal === controller.signal) {
      setBusy(false);
    }
  }
}

function checkSize(file) {
  if (!file.size) {
    throw new Error(`${current.name}: the file is empty.`);
  }
  if (file.size > model.limits.max_bytes) {
    const [size, limit] = [file.size, model.limits.max_bytes].map((bytes) => (bytes / 2 ** 20).toFixed(1));
    throw new Error(`${current.name}: the file has ${size} MiB, the server accepts ${limit} MiB.`);
  }
}

/** Return whether the server turns pictures upright, as their EXIF data states: not all models' programs do. */
function isTurned() {
  return model.input?.apply_orientation ?? true;
}

/** Show an error; the picture remains only if another try may succeed. */
function fail(error) {
  const { file, name } = current;
  if (!error.isTemporary) {
    setPicture(null);
  }
  clear({ file, name });
  showError(error.status > 0 && !error.isTemporary ? `${name}: ${error.message}` : error.message);
  element('retry').hidden = !error.isTemporary;
}

function startCamera() {
  controller.abort();
  clear({ name: 'camera.jpg' });
  setPicture(null);
  setBusy(true);
  element('camera').textContent = 'Stop the camera';
  element('camera').setAttribute('aria-pressed', 'true');
  element('video').hidden = false;
  main.dataset.state = 'picture';
  live.start();
}

function showFrame({ file, bitmap, text, answer, rate }) {
  setBusy(false);
  current.file = file;
  setPicture(bitmap);
  showAnswer(text, answer, current.objects);
  element('info').textContent = `${sizeText(answer)} · ${rate.toFixed(1)} frames/s`;
}

function showStopped(message) {
  element('camera').textContent = 'Use the camera';
  element('camera').setAttribute('aria-pressed', 'false');
  element('video').hidden = true;
  setBusy(false);
  setPicture(stage.bitmap);
  showError(message);
}

/** Show the objects of an answer; `previous` are those of the video's previous frame. */
function showAnswer(text, answer, previous = []) {
  current.objects = readObjects(answer, previous);
  current.text = text;
  current.selected = null;
  element('keypoints-chip').hidden = !current.objects.some((object) => object.keypoints);
  refresh();
}

function clear({ file = null, name }) {
  current = { file, name, text: '', objects: [], selected: null };
  element('info').textContent = '';
  element('retry').hidden = true;
  showError('');
  refresh();
}

function setPicture(bitmap) {
  main.dataset.state = bitmap ? 'picture' : 'empty';
  stage.setPicture(bitmap);
}

function visibleObjects() {
  return current.objects.filter((object) => object.score >= slider.valueAsNumber);
}

/** Show the objects that the slider selects. */
function refresh() {
  const objects = visibleObjects();
  element('score-value').textContent = slider.valueAsNumber.toFixed(2);
  stage.objects = objects;
  list.setObjects(objects);
  if (!objects.includes(current.selected)) {
    current.selected = null;
  }
  const { total, classes } = summarise(objects);
  const summary = classes.length ? `${total}: ${classes.join(', ')}` : total;
  element('summary').textContent = current.text ? total : 'Objects';
  element('classes').textContent = classes.map((text) => text.replaceAll(' ', '\u00a0')).join(' · ');
  element('overlay').setAttribute('aria-label', current.text ? `Picture with ${summary}` : 'Picture');
  element('nothing').hidden = !current.text || objects.length > 0;
  element('nothing').textContent = current.objects.length
    ? `${current.objects.length} with a lower score.`
    : `The model finds nothing with a score of ${LOWEST_SCORE} or more.`;
  for (const id of ['save-png', 'save-json']) {
    element(id).disabled = !current.text;
  }
  highlight(list.focused());
  if (current.text) {
    announce(summary, live.isRunning);
  }
}

/** Emphasise an object; without one, the selected one. */
function highlight(object) {
  stage.active = object ?? current.selected;
  list.mark(stage.active, current.selected);
  drawAll();
}

/** Keep an object emphasised until it is selected again. */
function select(object) {
  current.selected = object === current.selected ? null : object;
  highlight(current.selected);
  list.reveal(current.selected);
}

function shown() {
  const chips = CHIPS.map((name) => [name, element(`show-${name}`).checked]);
  return { ...Object.fromEntries(chips), skeleton: model.keypoints?.skeleton ?? [] };
}

function drawAll() {
  stage.show = shown();
  stage.draw();
}

async function savePng() {
  try {
    saveFile(await renderPng(stage.bitmap, visibleObjects(), shown()), `${stem()}_detections.png`);
  } catch (error) {
    showError(error.message);
  }
}

function saveJson() {
  saveFile(new Blob([current.text], { type: 'application/json' }), `${stem()}_detections.json`);
}

function stem() {
  return current.name.replace(/\.[^.]*$/, '') || 'picture';
}

function sizeText({ image }) {
  return `${image.width} × ${image.height}`;
}

function setBusy(isBusy) {
  element('stage').setAttribute('aria-busy', String(isBusy));
  if (isBusy) {
    element('info').textContent = 'Detecting …';
    announce('Detecting');
  } else if (!current.text) {
    element('info').textContent = '';
  }
}

function showError(message) {
  if (element('error').textContent !== message) {
    element('error').textContent = message;
  }
}
