// The picture with the objects over it.

import { drawObjects, labelOf } from './drawing.js';
import { objectAt } from './objects.js';

const MAX_UPSCALING = 3;
const NARROW = matchMedia('(max-width: 860px)'); // as in style.css
const MAX_NARROW_HEIGHT = 0.62; // of the window

/** The canvases of a picture and of its objects, scaled to the place that the page has. */
export class Stage {
  /** @param {(object: object|null) => void} onHover @param {(object: object|null) => void} onSelect */
  constructor(onHover, onSelect) {
    const element = (id) => document.getElementById(id);
    this.viewport = element('viewport');
    this.frame = element('frame');
    this.picture = element('picture');
    this.overlay = element('overlay');
    this.tooltip = element('tooltip');
    this.bitmap = null;
    this.objects = [];
    this.show = {};
    this.active = null;
    new ResizeObserver(() => this.layout()).observe(this.viewport);
    this.overlay.addEventListener('pointermove', (event) => {
      const object = event.pointerType === 'touch' ? null : this.find(event);
      this.pointTo(object, event);
      onHover(object);
    });
    this.overlay.addEventListener('pointerleave', () => {
      this.pointTo(null);
      onHover(null);
    });
    this.overlay.addEventListener('click', (event) => onSelect(this.find(event)));
  }

  /** Show a picture, or none; the stage closes its bitmaps. */
  setPicture(bitmap) {
    if (this.bitmap && this.bitmap !== bitmap) {
      this.bitmap.close();
    }
    this.bitmap = bitmap;
    this.objects = [];
    this.frame.hidden = !bitmap;
    this.layout();
  }

  /** Scale the canvases to the page and draw them. */
  layout() {
    if (!this.bitmap) {
      return;
    }
    const { width, height } = this.bitmap;
    const room = NARROW.matches ? window.innerHeight * MAX_NARROW_HEIGHT : this.viewport.clientHeight;
    const zoom = Math.min(this.viewport.clientWidth / width, room / height, MAX_UPSCALING);
    if (!(zoom > 0)) {
      return;
    }
    this.size = [Math.max(1, Math.round(width * zoom)), Math.max(1, Math.round(height * zoom))];
    [this.frame.style.width, this.frame.style.height] = this.size.map((value) => `${value}px`);
    for (const canvas of [this.picture, this.overlay]) {
      [canvas.width, canvas.height] = this.size.map((value) => Math.round(value * devicePixelRatio));
    }
    const context = this.picture.getContext('2d');
    context.imageSmoothingQuality = 'high';
    context.drawImage(this.bitmap, 0, 0, this.picture.width, this.picture.height);
    this.draw();
  }

  /** Draw the objects again. */
  draw() {
    const context = this.overlay.getContext('2d');
    context.clearRect(0, 0, this.overlay.width, this.overlay.height);
    if (this.bitmap) {
      const scale = this.overlay.width / this.bitmap.width;
      drawObjects(context, this.objects, { scale, unit: devicePixelRatio, show: this.show, active: this.active });
    }
  }

  find(event) {
    const area = this.overlay.getBoundingClientRect();
    const x = ((event.clientX - area.left) / area.width) * this.bitmap.width;
    const y = ((event.clientY - area.top) / area.height) * this.bitmap.height;
    return objectAt(this.objects, x, y);
  }

  /** Show class and score of an object at the pointer. */
  pointTo(object, event) {
    this.tooltip.hidden = !object;
    this.overlay.classList.toggle('over', Boolean(object));
    if (object) {
      this.tooltip.textContent = labelOf(object);
      const area = this.overlay.getBoundingClientRect();
      const left = Math.min(event.clientX - area.left + 14, area.width - this.tooltip.offsetWidth);
      const top = event.clientY - area.top + 18;
      this.tooltip.style.transform = `translate(${Math.max(0, left)}px, ${top}px)`;
    }
  }
}
