// Page elements, made so that text is always text.

/** An element with a class and text; `attributes` are set as they are. */
export function element(tag, className, words = "", attributes = {}) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = words;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** A button that does something when it is pressed. */
export function button(className, words, act, attributes = {}) {
  const made = element("button", className, words, { type: "button", ...attributes });
  made.addEventListener("click", act);
  return made;
}

/** A list to choose from: `choices` are `[value, words]`; `act` gets the value as text. */
export function chooser(label, choices, act) {
  const select = element("select", "longreel-choice", "", { "aria-label": label, title: label });
  for (const [value, words] of choices) select.append(element("option", "", words, { value }));
  select.addEventListener("change", () => act(select.value));
  return select;
}
