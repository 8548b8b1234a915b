// Filter the questions: the controls, and the address that holds them, so that a link shows what its sender saw.

const OUTCOME_OF_ARMS = [["", "any"], ["mixed", "some right, some wrong"], ["differ", "answers differ"], ["equal", "all answers equal"], ["allwrong", "none right"], ["allright", "all right"]];
const SORTS = [["", "file order"], ["right", "fewest right first"], ["wm", "lowest coherence first"], ["spread", "widest reward spread first"], ["long", "longest first"]];
const FINISH_NAMES = [["", "any finish"], ["length", "truncated (length)"], ["stop", "stopped by itself"], ["error", "error"]];

// Returns the controls by their name in the address. A column of the user's is named column.NAME.
function makeFilters(index, facts) {
  const select = (id, entries) => options(h("select", { id }), entries, "");
  const arms = facts.arms.map((arm) => [arm.name, arm.name]);
  const statuses = index.statuses.filter((name) => facts.all.statuses[name]).map((name) => [name, STATUS_NAME[name]]);
  const controls = {
    text: h("input", { id: "f-text", type: "search", placeholder: "in any text, gold or id", spellcheck: "false" }),
    arm: select("f-arm", [["", "any arm"], ...arms]),
    status: select("f-status", [["", "any status"], ...statuses]),
    finish: select("f-finish", FINISH_NAMES),
    agree: select("f-agree", OUTCOME_OF_ARMS),
    better: select("f-better", [["", dash], ...arms]),
    worse: select("f-worse", [["", dash], ...arms]),
    sort: select("f-sort", SORTS),
  };
  const labels = { text: "Text", arm: "A trajectory of", status: "with status", finish: "and finish", agree: "Arms agree", better: "Right in", worse: "wrong in", sort: "Sort" };
  Object.entries(index.given).forEach(([name, values], n) => {
    if (values.length < 2) return; // one value filters nothing
    // A code stands for the value: null and the empty text are values, too.
    controls[`column.${name}`] = select(`f-column-${n}`, [["", "any"], ...values.map((value, code) => [String(code), value === null ? "(null)" : value || "(empty)"])]);
    labels[`column.${name}`] = name;
  });
  const clear = h("button", { type: "button", id: "f-clear" }, "Clear");
  const label = ([name, control]) => h("label", { class: name === "text" ? "search" : null }, labels[name], control);
  at("filters").append(...Object.entries(controls).map(label), h("div", { class: "ends" }, clear));
  return controls;
}

// Returns what the address says of the filters: "?arm=terse&status=correct", or nothing.
function filterAddress(controls) {
  const set = Object.entries(controls).filter(([, control]) => control.value.trim());
  const words = new URLSearchParams(set.map(([name, control]) => [name, control.value.trim()])).toString();
  return words && `?${words}`;
}

// Sets the controls from such an address. A value that a control does not offer counts as not set.
function restoreFilters(controls, address) {
  const words = new URLSearchParams(address);
  for (const [name, control] of Object.entries(controls)) {
    const value = words.get(name) || "";
    control.value = value;
    if (control.value !== value) control.value = "";
  }
}

// Returns the controls' values as the index has them: numbers in place of names. Null: not set.
function wanted(controls, index, arms) {
  const place = (names, control) => (names.includes(control.value) ? names.indexOf(control.value) : null);
  const columns = Object.entries(controls).filter(([name, control]) => name.startsWith("column.") && control.value !== "");
  return {
    arm: place(arms, controls.arm), better: place(arms, controls.better), worse: place(arms, controls.worse),
    status: place(index.statuses, controls.status), finish: place(index.finishes, controls.finish), agree: controls.agree.value,
    columns: columns.map(([name, control]) => [`given:${name.slice("column.".length)}`, Number(control.value)]),
  };
}
