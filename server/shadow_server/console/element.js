// Elements with text in them. Strings become text nodes and nothing else: names and messages are other people's input.

/**
 * @param {string} tag
 * @param {Record<string, string>} attributes
 * @param {...(Node|string)} children
 */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in SVG's namespace. */
export function drawing(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const find = (id) => document.getElementById(id);

/** Change a text only when it differs, so that selections and screen readers are left alone. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Make `parent` show one child for each item; children that stay are kept, with the focus in them.
 * @param {Element} parent
 * @param {Map<string, T>} items by key, in order
 * @param {(item: T) => Element} make
 * @param {(child: Element, item: T) => void} update
 * @template T
 */
export function keepChildren(parent, items, make, update) {
  const kept = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const [key, item] of items) {
    const child = kept.get(key) ?? make(item);
    kept.delete(key);
    child.dataset.key = key;
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of kept.values()) child.remove();
}
