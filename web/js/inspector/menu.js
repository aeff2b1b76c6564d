// A small menu at a point of the picture, for the mouse and the keyboard.

import { button, element } from "./elements.js";

/** Open a menu in `root`: `items` are `[words, act]`. It closes itself; `closed` is called then. */
export function openMenu(root, x, y, label, items, closed) {
  const menu = element("div", "longreel-menu", "", { role: "menu", "aria-label": label });
  const close = () => {
    document.removeEventListener("pointerdown", outside, true);
    if (!menu.isConnected) return;
    menu.remove();
    closed();
  };
  const outside = (event) => {
    if (!menu.contains(event.target)) close();
  };
  for (const [words, act] of items) {
    const choose = () => {
      close();
      act();
    };
    menu.append(button("longreel-menu-item", words, choose, { role: "menuitem" }));
  }
  menu.addEventListener("keydown", (event) => {
    const all = [...menu.children];
    const at = all.indexOf(document.activeElement);
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key === "Escape" || event.key === "Tab") close();
    else if (event.key in steps) all[(at + steps[event.key] + all.length) % all.length].focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.addEventListener("pointerdown", outside, true);
  root.append(menu);
  menu.style.left = `${Math.max(0, Math.min(x, root.clientWidth - menu.offsetWidth - 4))}px`;
  menu.style.top = `${Math.max(0, Math.min(y, root.clientHeight - menu.offsetHeight - 4))}px`;
  menu.firstElementChild?.focus({ preventScroll: true });
  return close;
}
