// Build elements, format numbers and unpack data. Every text becomes a text node; nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const at = (id) => document.getElementById(id);

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
  return select;
}

// Returns the JSON of a data block, which is gzip in base64.
async function unpack(id) {
  const coded = atob(at(id).textContent);
  const bytes = new Uint8Array(coded.length);
  for (let i = 0; i < coded.length; i++) bytes[i] = coded.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const dash = "\u2013";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const percent = (share, digits = 1) => (known(share) ? `${(100 * share).toFixed(digits)}%` : dash);
const fixed = (value, digits = 3) => (known(value) ? value.toFixed(digits).replace("-", "\u2212") : dash);
const whole = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : dash);

function short(value) {
  if (!known(value)) return dash;
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e4, "k"]]) {
    if (Math.abs(value) >= size) {
      const scaled = value / (unit === "k" ? 1e3 : size);
      return `${scaled.toFixed(scaled < 100 ? 1 : 0)}${unit}`;
    }
  }
  return whole(value);
}

function duration(seconds) {
  if (!known(seconds)) return dash;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const legend = (entries) =>
  h("div", { class: "legend" }, entries.map(([name, text]) => h("span", null, h("i", { class: name }), text)));
