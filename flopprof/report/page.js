"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const STEP = 100;  // rows shown at first, and added by a click
const WORD = 22;  // letters
const LONGEST_OP = 40;  // letters: what is longer is shortened in its middle
const SHORT = ["op", "phase", "dtype", "kind", "bound", "verdict"];  // never broken
const GOOD = new Set(DATA.good);
const LABELS = {
  module_path: "module", input_shapes: "shapes", flops: "FLOPs", time_us: "time", time_share_frac: "share",
  achieved_flops_per_s: "FLOP/s", intensity_flops_per_byte: "FLOP/B", efficiency_frac: "of roof",
  flops_at_most: "FLOPs at most", module_type: "type", self_flops: "own FLOPs", self_time_us: "own time",
};
const COLUMNS = {
  sites: ["module_path", "op", "rank", "phase", "input_shapes", "dtype", "calls", "flops", "time_us", "time_share_frac",
    "achieved_flops_per_s", "intensity_flops_per_byte", "efficiency_frac", "bound", "verdict"],
  modules: ["module_path", "module_type", "calls", "self_flops", "flops", "self_time_us", "time_us",
    "time_share_frac", "achieved_flops_per_s"],
  kernels: ["kernel", "kind", "calls", "time_us", "time_share_frac"],
  misses: ["op", "module_path", "verdict", "calls", "time_us", "time_share_frac", "flops", "flops_at_most", "reason"],
};

function text(row, name) {
  return row.shown[name] ?? (row[name] || "–");
}
function make(tag, text, attributes) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  return node;
}
function records(table) {
  const named = values => Object.fromEntries(table.columns.map((name, i) => [name, values[i]]));
  return table.data.map((values, i) => Object.assign(named(values), {shown: named(table.shown[i])}));
}
function shortOp(op) {
  return op.length > LONGEST_OP ? op.slice(0, 24) + "…" + op.slice(25 - LONGEST_OP) : op;
}
function cellText(row, name) {
  if (name === "op") return shortOp(row.op === "(kernels)" ? row.input_shapes : row.op.replace(/^aten::/, ""));
  if (name === "module_path") return row.label ?? (row.module_path || "(model)");
  const shown = text(row, name);
  if (name === "kernel" && shown.length > 160) return shown.slice(0, 100) + " … " + shown.slice(-50);
  return shown;
}
// Lines break behind points and colons first; inside a word only where it is longer than WORD.
function fill(node, shown) {
  for (const part of shown.split(/(?<=[.:,_])/)) node.append(part, document.createElement("wbr"));
  return node;
}
function longestWord(rows, name) {
  const words = rows.slice(0, 1000).flatMap(row => cellText(row, name).split(/(?<=[.:,_])|\s/));
  return words.reduce((longest, word) => Math.max(longest, word.length), 0);
}

// A table as CSV: unknown is empty; a text that a spreadsheet would calculate is quoted.
function csvText(columns, lines) {
  const field = value => {
    let text = value === null || value === undefined ? "" : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r＝＋－＠]/.test(text)) text = "'" + text;
    return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  return [columns, ...lines].map(line => line.map(field).join(",")).join("\n") + "\n";
}
// The clipboard is not there in every browser for a file: then a selection is copied.
function copyText(text) {
  const byHand = () => {
    const area = make("textarea", undefined, {readonly: "", class: "copied"});
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  if (!navigator.clipboard) return Promise.resolve(byHand());
  return navigator.clipboard.writeText(text).then(() => true, byHand);
}
function copyButton(of, asCsv) {
  const button = make("button", "Copy CSV", {"aria-label": `Copy ${of} as CSV`, class: "copy"});
  button.addEventListener("click", () => copyText(asCsv()).then(done => {
    button.textContent = done ? "Copied" : "Not copied";
    setTimeout(() => { button.textContent = "Copy CSV"; }, 2000);
  }));
  return button;
}
function plainTable(table) {
  const lines = [...table.rows].map(row => [...row.cells].map(cell => cell.textContent));
  return csvText(lines[0], lines.slice(1));
}

// One table: sorted, filtered, shown in steps. Rows with `children` make a tree.
function addTable(id, rows, isTree) {
  const section = document.getElementById(id);
  if (!rows.length && id === "kernels") {
    section.remove();
    document.querySelector('nav a[href="#kernels"]').remove();
    return;
  }
  if (!rows.length) {
    section.append(make("p", DATA.empty[id]));
    return;
  }
  const isNumber = name => rows.some(row => typeof row[name] === "number");
  const columns = COLUMNS[id].filter(name =>
    !["phase", "dtype", "rank"].includes(name) && rows.some(row => row[name] !== null && row[name] !== "")
    || name === "module_path" || new Set(rows.map(row => row[name])).size > 1);
  for (const row of rows) {
    row.text = Object.values(row).filter(value => typeof value === "string").join(" ").toLowerCase();
  }
  const widths = new Map(columns.filter(name => !isNumber(name)).map(
    name => [name, Math.min(longestWord(rows, name), WORD) + "ch"]));
  const state = {sort: columns.find(name => name === "time_us") || "flops", down: true, words: [], limit: STEP};
  const tools = make("div", undefined, {class: "tools"});
  const filter = make("input", undefined, {type: "search", placeholder: "Filter: words that a row has", "aria-label": "Filter " + id});
  const choice = make("select", undefined, {class: "sort", "aria-label": "Sort " + id});
  columns.forEach(name => choice.append(make("option", "by " + (LABELS[name] || name), {value: name})));
  const turn = make("button", "▾", {class: "sort", "aria-label": "Other direction"});
  const count = make("span", "", {class: "count", role: "status"});
  const all = DATA[id] ? DATA[id].columns : DATA.sites.columns;
  const copy = copyButton(id, () => csvText(all, chosenRows().map(row => all.map(name => row[name]))));
  tools.append(filter, choice, turn, copy, count);
  const table = make("table"), head = make("thead"), body = make("tbody"), line = make("tr");
  for (const name of columns) {
    const cell = make("th", undefined, {title: DATA.docs[name] || "", "data-name": name, class: isNumber(name) ? "number" : ""});
    const button = make("button", LABELS[name] || name);
    button.addEventListener("click", () => sortBy(name, state.sort === name ? !state.down : isNumber(name)));
    cell.append(button);
    line.append(cell);
  }
  const more = make("button", "", {class: "more"});
  head.append(line);
  table.append(head, body);
  section.append(tools, table, more);

  function sortBy(name, down) {
    Object.assign(state, {sort: name, down, limit: STEP});
    draw();
  }
  function compare(a, b) {
    const [x, y] = [a[state.sort], b[state.sort]];
    const [noX, noY] = [x === null || x === "", y === null || y === ""];
    if (noX || noY) return noX - noY;  // what is unknown comes last, either way
    return (typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0) * (state.down ? -1 : 1);
  }
  const matches = row => state.words.every(word => row.text.includes(word));
  function walk(nodes, found) {
    for (const node of [...nodes].sort(compare)) {
      if (state.words.length && !node.kept) continue;
      found.push(node);
      if (node.isOpen || state.words.length) walk(node.children, found);
    }
    return found;
  }
  function keep(node) {
    const inside = node.children.map(keep);
    return node.kept = matches(node) || inside.includes(true);
  }
  const chosenRows = () => rows.filter(matches).sort(compare);  // of a tree, those that are closed too
  function chosen() {
    if (!isTree) return chosenRows();
    const roots = rows.filter(row => row.depth === 0);
    roots.forEach(keep);
    return walk(roots, []);
  }
  function addRow(row) {
    const entry = make("tr");
    for (const name of columns) {
      const cell = make("td", undefined, {"data-label": LABELS[name] || name});
      cell.className = isNumber(name) ? "number" : SHORT.includes(name) ? "short" : ["reason", "kernel"].includes(name) ? "wide" : "";
      if (isTree && name === "module_path") {
        cell.style.paddingLeft = Math.min(row.depth, 8) + 0.2 + "em";
        const twist = make("button", row.children.length ? (row.isOpen || state.words.length ? "▾" : "▸") : "", {class: "twist"});
        twist.setAttribute("aria-label", "Open or close " + cellText(row, name));
        twist.disabled = !row.children.length;
        twist.addEventListener("click", () => { row.isOpen = !row.isOpen; draw(); });
        cell.append(twist);
        cell.title = row.module_path;
      }
      if (name === "kernel") cell.title = row.kernel;
      if (name === "verdict") cell.title = DATA.meanings[row.verdict] || "";
      const shown = cellText(row, name);
      if (shown === "–") cell.classList.add("none");
      if (widths.has(name)) cell.style.minWidth = widths.get(name);
      if (name === "op") cell.title = row.op;
      const isWhole = isNumber(name) || SHORT.includes(name);  // no break after the point of a number
      cell.append(isWhole ? make("span", shown) : fill(make("span"), shown));
      entry.append(cell);
    }
    body.append(entry);
    if (id === "sites") {
      entry.className = "open";
      entry.tabIndex = 0;
      entry.addEventListener("click", () => details(entry, row));
      entry.setAttribute("aria-expanded", "false");
      entry.addEventListener("keydown", event => {
        if (event.target !== entry) return;
        const step = {ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling"}[event.key];
        if (event.key === "Enter" || event.key === " ") details(entry, row);
        else if (step) nextRow(entry, step);
        else return;
        event.preventDefault();
      });
    }
  }
  function nextRow(entry, step) {
    let other = entry[step];
    while (other && other.className !== "open") other = other[step];
    if (other) other.focus();
  }
  function details(entry, row) {
    const isOpen = entry.nextSibling && entry.nextSibling.className === "details";
    entry.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) return entry.nextSibling.remove();
    const line = make("tr", undefined, {class: "details"}), cell = make("td", undefined, {colspan: columns.length});
    const list = make("dl");
    for (const name of DATA.sites.columns) {
      list.append(make("dt", name, {title: DATA.docs[name] || ""}), make("dd", text(row, name)));
    }
    cell.append(list);
    line.append(cell);
    entry.after(line);
  }
  function draw() {
    const found = chosen();
    body.replaceChildren();
    found.slice(0, state.limit).forEach(addRow);
    const matched = isTree && !state.words.length ? rows.length : isTree ? rows.filter(matches).length : found.length;
    count.textContent = (matched === rows.length ? "" : `${matched} of `) + rows.length + (rows.length === 1 ? " row" : " rows");
    more.hidden = found.length <= state.limit;
    more.textContent = `Show ${Math.min(1000, found.length - state.limit)} more`;
    choice.value = state.sort;
    turn.textContent = state.down ? "▾" : "▴";
    for (const cell of line.children) {
      if (cell.dataset.name !== state.sort) cell.removeAttribute("aria-sort");
      else cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    }
  }
  more.addEventListener("click", () => { state.limit += 1000; draw(); });
  filter.addEventListener("input", () => {
    state.words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    state.limit = STEP;
    draw();
  });
  choice.addEventListener("change", () => sortBy(choice.value, isNumber(choice.value)));
  turn.addEventListener("click", () => sortBy(state.sort, !state.down));
  if (isTree) {
    for (const [text, isOpen] of [["Open all", true], ["Close all", false]]) {
      const button = make("button", text);
      button.addEventListener("click", () => { rows.forEach(row => { row.isOpen = isOpen; }); draw(); });
      tools.insertBefore(button, count);
    }
  }
  draw();
}

function tree(rows) {
  const byPath = new Map(rows.map(row => [row.module_path, row]));
  for (const row of rows) Object.assign(row, {children: [], depth: 0});
  for (const row of [...rows].sort((a, b) => a.module_path.length - b.module_path.length)) {
    let above = row.module_path, parent;
    while (above && !parent) {
      above = above.includes(".") ? above.slice(0, above.lastIndexOf(".")) : "";
      parent = byPath.get(above);
    }
    row.label = row.module_path || "(model)";
    if (parent) {
      parent.children.push(row);
      row.depth = parent.depth + 1;
      row.label = row.module_path.slice(above ? above.length + 1 : 0);
    }
    row.isOpen = row.depth < 1;
  }
  return rows;
}

const sites = records(DATA.sites);
addTable("sites", sites);
addTable("modules", tree(records(DATA.modules)), true);
addTable("kernels", records(DATA.kernels));
addTable("misses", sites.filter(site => !GOOD.has(site.verdict)));
for (const table of document.querySelectorAll("#job table")) {
  const tools = make("div", undefined, {class: "tools"});
  tools.append(copyButton("this table", () => plainTable(table)));
  (table.closest(".heat") || table).before(tools);
}
const chart = document.querySelector("figure");
if (chart) {
  const zoom = () => chart.setAttribute("aria-pressed", String(chart.classList.toggle("zoom")));
  chart.addEventListener("click", zoom);
  chart.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    zoom();
    event.preventDefault();
  });
}
