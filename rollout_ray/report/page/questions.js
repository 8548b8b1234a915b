// Browse the questions: a paged list of those that pass the filters, and one question with all its arms side by side.
// The index is in memory. A packed chunk has the questions' texts and is decoded to show or search them.

const PAGE = 25;
const CACHED = 8; // decoded chunks

class Browser {
  constructor(index, facts) {
    const { columns } = index;
    this.statuses = index.statuses;
    this.finishes = index.finishes;
    this.facts = facts;
    this.arms = facts.arms.map((arm) => arm.name);
    this.columns = columns;
    this.count = columns.n ? columns.n.length : 0;
    this.first = new Uint32Array(this.count + 1);
    this.inChunk = new Uint32Array(this.count);
    for (let q = 0; q < this.count; q++) {
      this.first[q + 1] = this.first[q] + columns.n[q];
      this.inChunk[q] = q && columns.chunk[q] === columns.chunk[q - 1] ? this.inChunk[q - 1] + 1 : 0;
    }
    this.chunks = new Map();
    this.found = [];
    this.page = 0;
    this.searching = 0;
    this.index = index;
    this.controls = makeFilters(index, facts);
    this.listen();
  }

  // Data

  async chunk(number) {
    if (!this.chunks.has(number)) {
      this.chunks.set(number, unpack(`chunk-${number}`));
      if (this.chunks.size > CACHED) this.chunks.delete(this.chunks.keys().next().value);
    }
    return this.chunks.get(number);
  }

  async question(q) {
    return (await this.chunk(this.columns.chunk[q]))[this.inChunk[q]];
  }

  samples(q) {
    return Array.from({ length: this.columns.n[q] }, (_, i) => this.first[q] + i);
  }

  // Filters

  listen() {
    let typing = 0;
    const form = at("filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", (event) => event.target !== this.controls.text && this.apply());
    this.controls.text.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.apply(), 250);
    });
    at("f-clear").addEventListener("click", () => {
      form.reset();
      this.apply();
    });
  }

  matches(q, want) {
    const { arm, status, finish, answer } = this.columns;
    const [from, to] = [this.first[q], this.first[q + 1]];
    if (want.columns.some(([name, code]) => this.columns[name][q] !== code)) return false;
    let fits = false, right = 0, wrong = 0, differ = false, better = false, worse = false;
    for (let t = from; t < to; t++) {
      const name = this.statuses[status[t]];
      if ((want.arm === null || arm[t] === want.arm) && (want.status === null || status[t] === want.status) && (want.finish === null || finish[t] === want.finish)) fits = true;
      if (name === "correct") right++;
      else if (name === "incorrect" || name === "no_answer") wrong++;
      if (answer[t] !== answer[from]) differ = true;
      if (arm[t] === want.better && name === "correct") better = true;
      if (arm[t] === want.worse && (name === "incorrect" || name === "no_answer")) worse = true;
    }
    if (!fits && (to > from || want.arm !== null || want.status !== null || want.finish !== null)) return false;
    if ((want.better !== null && !better) || (want.worse !== null && !worse)) return false;
    switch (want.agree) {
      case "mixed": return right > 0 && wrong > 0;
      case "differ": return differ;
      case "equal": return !differ;
      case "allwrong": return right === 0 && wrong > 0;
      case "allright": return right > 0 && right === to - from;
      default: return true;
    }
  }

  async apply() {
    const { sort, text } = this.controls;
    const want = wanted(this.controls, this.index, this.arms);
    const run = ++this.searching;
    let found = [];
    for (let q = 0; q < this.count; q++) if (this.matches(q, want)) found.push(q);
    if (text.value.trim()) found = await this.search(found, text.value.trim().toLowerCase(), run);
    if (run !== this.searching) return; // a newer search has begun
    this.needle = text.value.trim();
    this.found = this.sorted(found, sort.value);
    this.page = 0;
    this.filtered = filterAddress(this.controls);
    if (!/^#question-/.test(location.hash) && (this.filtered || /^#questions/.test(location.hash))) history.replaceState(null, "", `#questions${this.filtered}`);
    this.showList();
  }

  // Arrow keys turn the page of the list, or go to the neighbouring question.
  turnByKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, pre")) return;
    const button = at({ ArrowLeft: "previous", ArrowRight: "next" }[event.key]);
    if (button) button.click();
  }

  // The text with every match of the search in a mark.
  marked(text) {
    const needle = (this.needle || "").toLowerCase();
    const lower = text.toLowerCase();
    if (!needle || lower.length !== text.length) return text;
    const parts = [];
    let from = 0;
    for (let place = lower.indexOf(needle); place >= 0; place = lower.indexOf(needle, from)) {
      parts.push(text.slice(from, place), h("mark", null, text.slice(place, place + needle.length)));
      from = place + needle.length;
    }
    return [...parts, text.slice(from)];
  }

  // Returns the questions of `among` that contain the needle, chunk by chunk to keep the page responsive.
  async search(among, needle, run) {
    const found = [];
    let chunk = -1, questions = null;
    for (const q of among) {
      if (this.columns.chunk[q] !== chunk) {
        chunk = this.columns.chunk[q];
        questions = await unpack(`chunk-${chunk}`);
        if (run !== this.searching) return [];
        this.showBusy(`Searching\u2026 ${whole(found.length)} found`);
      }
      if (this.holds(questions[this.inChunk[q]], needle)) found.push(q);
    }
    return found;
  }

  holds(question, needle) {
    const has = (value) => value !== null && value.toLowerCase().includes(needle);
    return has(question.id) || has(question.gold) || has(question.data) || Object.values(question.columns).some(has) || question.prompt.some(([, content]) => has(content)) || question.trajectories.some((t) => has(t.text) || has(t.answer) || has(t.error));
  }

  sorted(found, by) {
    const { status, reward, tokens, wm } = this.columns;
    const right = this.statuses.indexOf("correct");
    const measure = {
      right: (q) => this.samples(q).reduce((n, t) => n + (status[t] === right), 0),
      wm: (q) => wm[q],
      spread: (q) => {
        const values = this.samples(q).map((t) => reward[t]).filter(known);
        return values.length ? Math.min(...values) - Math.max(...values) : 0;
      },
      long: (q) => -Math.max(0, ...this.samples(q).map((t) => tokens[t])),
    }[by];
    if (!measure) return found;
    const keys = new Map(found.map((q) => [q, measure(q)]));
    return [...found].sort((a, b) => keys.get(a) - keys.get(b) || a - b);
  }

  // The list

  showBusy(text) {
    const place = at("found");
    if (place) place.textContent = text;
  }

  showList() {
    const pages = Math.max(1, Math.ceil(this.found.length / PAGE));
    const turn = (by, text, id) => h("button", { type: "button", id, disabled: this.page + by < 0 || this.page + by >= pages, on: { click: () => { this.page += by; this.showList(); } } }, text);
    const thinned = this.count < this.facts.questions ? ` shown of ${whole(this.facts.questions)} in the file, evenly spread` : "";
    const bar = h("div", { class: "bar" }, h("div", null, h("b", { id: "found", role: "status" }, `${whole(this.found.length)} of ${whole(this.count)} questions`), h("span", { class: "quiet" }, thinned)),
      h("div", null, turn(-1, "\u2190 Previous", "previous"), h("span", { id: "page" }, `page ${this.page + 1} of ${pages}`), turn(1, "Next \u2192", "next")));
    const rows = this.found.slice(this.page * PAGE, (this.page + 1) * PAGE).map((q) => this.row(q));
    const table = h("table", { class: "list" }, h("thead", null, h("tr", null, h("th", { scope: "col", class: "num" }, "#"), h("th", { scope: "col" }, "question"), h("th", { scope: "col" }, "trajectories"),
      h("th", { scope: "col", class: "num" }, "right"), h("th", { scope: "col", class: "num optional" }, "s_wm"), h("th", { scope: "col", class: "num optional" }, "reward"), h("th", { scope: "col", class: "num optional" }, "tokens"))), h("tbody", null, rows));
    at("filters").hidden = false;
    at("browser").replaceChildren(bar, h("div", { class: "card flush scroll" }, rows.length ? table : h("p", { class: "empty" }, "No question fits these filters.")));
  }

  row(q) {
    const { number, title, wm, status, reward, tokens } = this.columns;
    const samples = this.samples(q);
    const right = samples.filter((t) => this.statuses[status[t]] === "correct").length;
    const rewards = samples.map((t) => reward[t]).filter(known);
    const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
    const address = `#question-${number[q] + 1}${this.filtered}`;
    const open = () => { location.hash = address; };
    return h("tr", { on: { click: open } }, h("td", { class: "num quiet" }, number[q] + 1), h("td", { class: "prompt", title: title[q] }, h("a", { href: address, on: { click: (event) => event.stopPropagation() } }, title[q] || "(empty)")),
      h("td", null, this.dots(samples)), h("td", { class: "num" }, `${right}/${samples.length}`), h("td", { class: "num optional" }, fixed(wm[q])), h("td", { class: "num optional" }, fixed(mean(rewards))), h("td", { class: "num optional" }, whole(mean(samples.map((t) => tokens[t])))));
  }

  dots(samples) {
    const { arm, status, finish } = this.columns;
    const dot = (t) => {
      const label = `${this.arms[arm[t]] || "?"}: ${STATUS_NAME[this.statuses[status[t]]] || "?"}${finish[t] === 1 ? ", truncated" : ""}`;
      return h("i", { class: `${this.group(t)}${finish[t] === 1 ? " cut" : ""}`, role: "img", title: label, "aria-label": label });
    };
    const several = this.facts.arms.some((one) => one.samples > 1); // then each arm gets its own line
    const dots = samples.slice(0, 64).map((t, n) => [several && n && arm[t] !== arm[samples[n - 1]] ? h("b") : null, dot(t)]);
    return h("div", { class: "dots" }, dots, samples.length > 64 ? `+${samples.length - 64}` : null);
  }

  group(t) {
    return STATUS_CLASS[this.statuses[this.columns.status[t]]] || "unknown";
  }

  // One question

  // Sets the filters that the address has, and opens its question. Any other address shows the list.
  async follow() {
    const [, place, address] = /^#([^?]*)(\?.*)?$/.exec(location.hash) || ["", "", ""];
    const asked = /^question-(\d+)$/.exec(place);
    const listed = place === "questions" && address !== undefined;
    if (this.filtered === undefined || ((asked || listed) && (address || "") !== this.filtered)) {
      if (asked || listed) restoreFilters(this.controls, address || "");
      await this.apply();
      if (listed) at("questions").scrollIntoView();
    }
    if (!asked) {
      if (at("detail")) this.showList();
      return;
    }
    const q = this.columns.number.indexOf(Number(asked[1]) - 1);
    if (q >= 0) await this.showQuestion(q);
  }

  async showQuestion(q) {
    const question = await this.question(q);
    const { number } = this.columns;
    const among = this.found.includes(q) ? this.found : Array.from({ length: this.count }, (_, n) => n);
    const place = among.indexOf(q);
    const go = (to) => () => { location.hash = `${to === null ? "questions" : `question-${number[to] + 1}`}${this.filtered}`; };
    const step = (by, text, id) => h("button", { type: "button", id, disabled: !(place + by in among), on: { click: go(among[place + by]) } }, text);
    const bar = h("div", { class: "bar" }, h("div", null, h("button", { type: "button", id: "back", on: { click: go(null) } }, "\u2190 All questions"), h("span", { class: "quiet" }, `${whole(place + 1)} of ${whole(among.length)}`)), h("div", null, step(-1, "\u2190 Previous", "previous"), step(1, "Next \u2192", "next")));
    const fact = (name, value) => h("span", null, `${name} `, h("b", null, value));
    const prompt = question.prompt.map(([role, content]) => h("div", null, question.prompt.length > 1 ? h("h3", { class: "quiet" }, role) : null, h("p", { class: "text" }, this.marked(content))));
    const shown = question.data === null ? prompt : [h("p", { class: "text" }, this.marked(question.data)), h("details", { id: "rendered" }, h("summary", null, "With the prompt template"), prompt)];
    const head = h("div", { class: "card" },
      h("div", { class: "prompts" }, question.fault ? h("p", { class: "note" }, `This row is not a valid question: ${question.fault}`) : null, shown),
      h("div", { class: "facts" }, fact("gold", question.gold === null ? dash : question.gold), Object.entries(question.scores).map(([name, value]) => fact(name, fixed(value))), fact("question", number[q] + 1), fact("id", question.id)),
      Object.keys(question.columns).length ? h("div", { class: "facts", id: "columns" }, Object.entries(question.columns).map(([name, value]) => fact(name, value === null ? dash : this.marked(value)))) : null);
    const samples = this.samples(q).map((t, n) => this.sample(t, question.trajectories[n]));
    at("browser").replaceChildren(h("div", { id: "detail", class: "detail", "data-question": number[q] + 1 }, bar, head, h("div", { class: "side" }, samples)));
    at("filters").hidden = true;
    at("detail").scrollIntoView();
  }

  sample(t, trajectory) {
    const { arm, status, finish, reward, tokens } = this.columns;
    const group = this.group(t);
    const name = this.arms[arm[t]] || "?";
    const how = this.facts.arms[arm[t]] || {};
    const ended = this.finishes[finish[t]];
    const facts = [`T ${how.temperature}`, `${whole(tokens[t])} tokens`, ended === "length" ? "truncated" : ended, trajectory.engine, trajectory.policy_version ? `weights ${trajectory.policy_version}` : null];
    return h("article", { class: `card sample is-${group}`, title: `seed ${trajectory.seed}, ${trajectory.prompt_tokens} prompt tokens` },
      h("header", null, h("h3", null, how.samples > 1 ? `${name} #${trajectory.sample}` : name), h("span", { class: `badge ${group}` }, STATUS_NAME[this.statuses[status[t]]] || "?")),
      h("div", { class: "quiet small" }, facts.filter(Boolean).join(" \u00b7 ")),
      h("div", { class: "answer" }, h("span", { class: "quiet" }, "answer "), h("b", null, trajectory.answer === null ? dash : trajectory.answer)),
      this.why(trajectory.why),
      this.terms(reward[t], trajectory.terms),
      trajectory.error ? h("p", { class: "note" }, trajectory.error) : null,
      h("pre", { class: "text", tabindex: "0" }, this.marked(trajectory.text)));
  }

  // Why a trajectory has its verdict, as `rollout grade` says it.
  why(found) {
    if (!found) return null;
    const [taken, answer, gold, rule, status] = found;
    const rows = [["text taken", taken || "(none)"], ["normal form", answer ?? "(none)"], ["gold", gold ?? "(none that can be read)"], ["decided by", rule], ["graded now", status && `${STATUS_NAME[status] || status}: \`rollout rescore\` grades anew`]];
    return h("details", { class: "why" }, h("summary", null, "Why this verdict"),
      h("dl", null, rows.filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", null, value)])));
  }

  terms(reward, terms) {
    const parts = terms ? Object.entries(terms).filter(([name, value]) => value || name === "correct" || name === "coherence") : [];
    const sign = (name, n) => (name === "penalty" ? " \u2212 " : n ? " + " : "= ");
    const custom = this.facts.reward.custom;
    return h("div", { class: "terms" }, h("span", { class: "quiet" }, "reward"), h("b", null, fixed(reward)),
      parts.map(([name, value], n) => h("span", { class: "term" }, sign(name, n), h("em", null, fixed(value)), ` ${name}`)), !terms && custom ? h("span", { class: "term" }, `by ${custom}`) : null);
  }
}
