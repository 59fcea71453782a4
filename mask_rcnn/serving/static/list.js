// The list of the objects next to the picture.

import { cssColor } from './colors.js';

const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };

/** A list of buttons; Tab, the arrow keys, Home and End move through them. */
export class ObjectList {
  /**
   * @param {HTMLElement} root
   * @param {(object: object|null) => void} onHighlight
   * @param {(object: object) => void} onSelect
   */
  constructor(root, onHighlight, onSelect) {
    this.root = root;
    this.onHighlight = onHighlight;
    this.onSelect = onSelect;
    this.buttons = new Map();
    root.addEventListener('keydown', (event) => this.move(event));
    root.addEventListener('focusout', () => onHighlight(null));
    root.addEventListener('pointerleave', () => onHighlight(this.focused()));
  }

  /** List objects; the focus stays at its position. */
  setObjects(objects) {
    const focused = [...this.buttons.values()].indexOf(document.activeElement);
    this.buttons = new Map(objects.map((object) => [object, this.makeButton(object)]));
    const items = [...this.buttons.values()].map((button) => {
      const item = document.createElement('li');
      item.append(button);
      return item;
    });
    this.root.replaceChildren(...items);
    if (focused >= 0) {
      [...this.buttons.values()][Math.min(focused, objects.length - 1)]?.focus();
    }
  }

  /** Mark the emphasised object and the selected one. */
  mark(active, selected) {
    for (const [object, button] of this.buttons) {
      button.classList.toggle('active', object === active);
      button.setAttribute('aria-pressed', String(object === selected));
    }
  }

  /** Return the object whose button has the focus, or null. */
  focused() {
    return [...this.buttons].find(([, button]) => button === document.activeElement)?.[0] ?? null;
  }

  /** Make the object's button visible. */
  reveal(object) {
    this.buttons.get(object)?.scrollIntoView({ block: 'nearest' });
  }

  makeButton(object) {
    const button = document.createElement('button');
    button.type = 'button';
    const swatch = span('swatch', '');
    swatch.style.backgroundColor = cssColor(object.colorIndex);
    const bar = span('bar', '');
    bar.style.setProperty('--score', object.score);
    button.append(swatch, span('name', object.name), span('score', object.score.toFixed(2)), bar);
    button.setAttribute('aria-label', `${object.name}, score ${object.score.toFixed(2)}`);
    button.addEventListener('focus', () => this.onHighlight(object));
    button.addEventListener('pointerenter', () => this.onHighlight(object));
    button.addEventListener('click', () => this.onSelect(object));
    return button;
  }

  move(event) {
    const buttons = [...this.buttons.values()];
    const at = buttons.indexOf(document.activeElement);
    const target = { Home: 0, End: buttons.length - 1 }[event.key] ?? at + (STEPS[event.key] ?? 0);
    if (at >= 0 && (event.key in STEPS || event.key === 'Home' || event.key === 'End')) {
      event.preventDefault();
      buttons[Math.max(0, Math.min(target, buttons.length - 1))].focus();
    }
  }
}

function span(className, text) {
  const element = document.createElement('span');
  element.className = className;
  element.textContent = text;
  return element;
}
