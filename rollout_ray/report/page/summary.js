// Show the parts of the page around the questions: tiles, arms, charts, engines and config, all from the facts.

const STATUS_CLASS = {
  correct: "right", incorrect: "wrong", no_answer: "none", no_gold: "unknown", bad_gold: "unknown", timeout: "unknown", error: "unknown",
};
const STATUS_NAME = {
  correct: "correct", incorrect: "incorrect", no_answer: "no answer", no_gold: "no gold", bad_gold: "bad gold", timeout: "timeout", error: "error",
};
const OUTCOMES = [["right", "right"], ["wrong", "wrong or no answer"], ["unknown", "not graded"]];

function showOverview(facts) {
  const { all } = facts;
  const session = facts.sessions[facts.sessions.length - 1];
  const summary = (session && session.summary) || {};
  const versions = Object.entries(facts.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  const when = session ? new Date(session.time * 1000).toLocaleString() : null;
  at("subtitle").append([facts.model, when, facts.versions.vllm ? `vLLM ${facts.versions.vllm}` : null, facts.file].filter(Boolean).join(" \u00b7 "));
  at("subtitle").title = versions;
  const truncated = all.finishes.length || 0;
  const range = (values, format) => (values && known(values[1]) ? `${format(values[1])} to ${format(values[2])}` : null);
  const tiles = [
    [whole(facts.questions), "questions", facts.dataset],
    [whole(all.trajectories), "trajectories", `${facts.arms.length} arm${facts.arms.length === 1 ? "" : "s"}`],
    [all.accuracy ? percent(all.accuracy[0]) : dash, "accuracy", all.accuracy ? range(all.accuracy, percent) : "nothing was graded"],
    [all.reward ? fixed(all.reward[0]) : dash, "mean reward", range(all.reward, fixed)],
    [all.tokens ? whole(all.tokens[0]) : dash, "mean output tokens", `${short(all.tokens ? all.tokens[0] * all.trajectories : 0)} in all`],
    [percent(all.trajectories ? truncated / all.trajectories : null), "truncated", `${whole(truncated)} of ${whole(all.trajectories)}`],
    [known(summary.tokens_per_second) ? short(summary.tokens_per_second) : dash, "tokens/s", facts.sessions.length > 1 ? "last session" : null],
    [duration(summary.total_seconds), facts.sessions.length > 1 ? "last session" : "start to file", `${duration(summary.generation_seconds)} generating`],
  ];
  at("tiles").append(...tiles.map(([figure, name, more]) => h("div", { class: "tile" }, h("b", null, figure), h("span", null, name), more ? h("span", null, more) : null)));
  const notes = [facts.reward_rule];
  const unrewarded = all.trajectories - Object.entries(all.statuses).reduce((n, [name, count]) => n + (["bad_gold", "timeout", "error"].includes(name) ? 0 : count), 0);
  if (unrewarded) notes.push(`${whole(unrewarded)} trajectories have no known grade (error, timeout or bad gold). They count in no accuracy and no reward.`);
  if (all.trajectories && truncated / all.trajectories > 0.2) notes.push("More than a fifth of the trajectories were cut off at max_tokens.");
  if (session && !session.finished) notes.push("The last session did not finish.");
  if (facts.rescored_from) notes.push(`These rewards were computed again, from the run with config ${facts.rescored_from}.`);
  if (session) notes.push(...new Set(session.warnings));
  if (typeof summary.bound_by === "string" && summary.bound_by) notes.push(summary.bound_by);
  at("notes").append(...notes.map((text) => h("p", { class: "note" }, text)));
}

const stack = (parts) => {
  const total = parts.reduce((sum, [, count]) => sum + count, 0) || 1;
  const title = parts.filter(([, count]) => count).map(([, count, name]) => `${name} ${whole(count)} (${percent(count / total)})`).join("\n");
  return h("div", { class: "stack", title, role: "img", "aria-label": title }, parts.map(([group, count]) => {
    const part = h("i", { class: group });
    part.style.width = `${(100 * count) / total}%`;
    return part;
  }));
};

function statusStack(statuses) {
  return stack(Object.keys(STATUS_CLASS).map((name) => [STATUS_CLASS[name], statuses[name] || 0, STATUS_NAME[name]]));
}

// Returns bounds that contain all intervals of a column.
function bounds(intervals, least, most) {
  const values = intervals.filter(Boolean).flat().filter(known);
  if (!values.length) return [0, 1];
  const room = (Math.max(...values) - Math.min(...values)) * 0.06 || 0.05;
  return [Math.max(least, Math.min(...values) - room), Math.min(most, Math.max(...values) + room)];
}

function withWhisker(name, interval, [from, to], reference, format) {
  if (!interval) return dash;
  const range = known(interval[1]) ? `${format(interval[1])} to ${format(interval[2])}` : "";
  const label = `${name}: ${format(interval[0])}${range ? `, 95% interval ${range}` : ""}`;
  return h("div", { class: "whisker" }, h("span", { class: "figure" }, format(interval[0])), whisker(label, interval, from, to, reference), h("span", { class: "range" }, range));
}

function showArms(facts) {
  const groups = facts.arms.map((arm) => ({ arm, counts: facts.groups[arm.name] })).filter(({ counts }) => counts);
  const accuracies = bounds([...groups.map(({ counts }) => counts.accuracy), facts.all.accuracy], 0, 1);
  const rewards = bounds([...groups.map(({ counts }) => counts.reward), facts.all.reward], -Infinity, Infinity);
  const row = (name, title, counts, arm) =>
    h("tr", { class: arm ? null : "total" },
      h("td", { class: "name", title }, name),
      h("td", { class: "num" }, arm ? arm.temperature : ""),
      h("td", { class: "num" }, whole(counts.trajectories)),
      h("td", null, withWhisker(`accuracy of ${name}`, counts.accuracy, accuracies, facts.all.accuracy && facts.all.accuracy[0], percent)),
      h("td", null, withWhisker(`mean reward of ${name}`, counts.reward, rewards, facts.all.reward && facts.all.reward[0], fixed)),
      h("td", { class: "num" }, counts.tokens ? whole(counts.tokens[0]) : dash),
      h("td", { class: "num" }, percent(counts.trajectories ? (counts.finishes.length || 0) / counts.trajectories : null)),
      h("td", null, statusStack(counts.statuses)));
  const about = (arm) => [arm.system_prompt || "no system prompt", `top_p ${arm.top_p}, samples ${arm.samples}, max_tokens ${arm.max_tokens}`, arm.probe_role ? `probe ${arm.probe_role}` : null].filter(Boolean).join("\n");
  const headings = [["arm", ""], ["T", "num"], ["trajectories", "num"], ["accuracy", ""], ["mean reward", ""], ["mean tokens", "num"], ["truncated", "num"], ["score status", ""]];
  at("arm-table").append(h("table", null,
    h("thead", null, h("tr", null, headings.map(([name, group]) => h("th", { class: group, scope: "col" }, name)))),
    h("tbody", null, groups.map(({ arm, counts }) => row(arm.name, about(arm), counts, arm)), groups.length > 1 ? row("all arms", null, facts.all, null) : null)));
  const seen = Object.keys(STATUS_CLASS).filter((name) => facts.all.statuses[name]);
  const kinds = seen.map((name) => [STATUS_CLASS[name], `${STATUS_NAME[name]} ${whole(facts.all.statuses[name])}`]);
  const finishes = Object.entries(facts.all.finishes).map(([name, count]) => `${name} ${whole(count)}`).join(", ");
  at("arm-note").append(legend(kinds), `Finish reasons: ${finishes || "none"}. 95% intervals: Wilson's for shares, mean \u00b1 1.96 standard errors for other means; samples of one question count as one cluster (Miller 2024). The dashed line is the mean of all arms.`);
}

// Shows the first prompt as the model was sent it, in each variant. Only the events of a run directory have it.
function showFirstPrompt(facts) {
  const prompts = facts.sessions.map((session) => session.prompts).filter((one) => one && one.first && one.first.length).pop();
  if (!prompts) return;
  at("first-prompt").append(h("details", { class: "card" }, h("summary", null, "What the model was sent: the first prompt"),
    prompts.notes.map((note) => h("p", { class: "quiet small" }, note)),
    prompts.first.map(({ arms, text }) => [h("h3", null, arms.join(", ")), h("div", { class: "text mono" }, text)])));
}

function showCharts(facts) {
  const names = facts.arms.map((arm) => arm.name);
  const select = options(at("chart-arm"), [["", "all arms"], ...names.map((name) => [name, name])], "");
  const draw = () => {
    const counts = select.value === "" ? facts.all : facts.groups[select.value];
    if (!counts) return;
    const card = (title, key, svg, note) => h("figure", { class: "card chart", id: `chart-${key}` }, h("h3", null, title), svg ? note : null, svg || h("p", { class: "empty" }, note));
    const { reward, tokens } = counts.histograms;
    const outcomes = OUTCOMES.filter((_, n) => [reward, tokens].some((lists) => lists[n].some((count) => count)));
    const cards = [];
    if (counts.curve && counts.curve.k.length) {
      const lines = [{ name: "pass", style: "accent", points: counts.curve.pass }, { name: "majority", style: "second", points: counts.curve.majority }];
      cards.push(card("pass@k and majority@k", "curves", curves("pass@k and majority@k", counts.curve.k, lines, counts.curve.questions), legend([["accent", "pass@k, unbiased (Chen et al. 2021)"], ["second", "majority@k, exact"]])));
    } else cards.push(card("pass@k and majority@k", "curves", null, counts.curve ? "Nothing was graded." : "One sample a question has no curve."));
    if (select.value === "") {
      const graded = facts.difficulty.some((count) => count);
      cards.push(card("Difficulty: right trajectories a question", "difficulty", graded ? countBars("Questions by right trajectories", facts.difficulty, `right of ${facts.difficulty.length - 1}`, "questions") : null,
        graded ? legend([["wrong", "none right"], ["accent", "some right: these teach"], ["right", "all right"], ...(facts.ungraded ? [["unknown", `${whole(facts.ungraded)} with an unknown grade left out`]] : [])]) : "Nothing was graded."));
    }
    const rewarded = reward.some((list) => list.some((count) => count));
    cards.push(card("Reward", "reward", rewarded ? histogram("Rewards", facts.edges.reward, reward, OUTCOMES, "reward") : null, rewarded ? legend(outcomes) : "There are no rewards."));
    cards.push(card("Length", "tokens", histogram("Lengths", facts.edges.tokens, tokens, OUTCOMES, "output tokens"), legend(outcomes)));
    const points = Object.entries(facts.groups).filter(([, group]) => group.accuracy && group.tokens).map(([name, group]) => ({ name, x: group.tokens, y: group.accuracy }));
    if (select.value === "" && points.length > 1) cards.push(card("Accuracy against length, by arm", "scatter", scatter("Accuracy against mean length, by arm", points, "mean output tokens"), legend([["accent", "mean and 95% interval of both"]])));
    if (select.value === "") cards.push(card("Coherence of a question (s_wm)", "coherence", histogram("Coherence", facts.edges.s_wm, [facts.s_wm], [["second", "questions"]], "s_wm"), legend([["second", "questions"]])));
    at("charts").replaceChildren(...cards);
  };
  select.addEventListener("change", draw);
  draw();
}

// Optional columns of an engine: from its start event, or from its session's account.
const ENGINE_FACTS = [
  ["facts", "max_num_seqs", "max_num_seqs", whole], ["facts", "seconds", "start", duration], ["facts", "import_seconds", "import", duration], ["facts", "load_seconds", "load", duration],
  ["account", "decoding_seconds", "decoding", duration], ["account", "idle_seconds", "without work", duration], ["account", "tokens_per_second", "tokens/s", short],
  ["account", "mean_batch", "mean batch", (value) => fixed(value, 1)], ["account", "preemptions", "preemptions", whole], ["account", "restarts", "restarts", whole],
];

function showEngines(facts) {
  if (!facts.sessions.length) {
    at("engine-cards").append(h("p", { class: "card empty" }, "This file is outside its run directory, so there are no events of engines."));
    return;
  }
  const single = facts.sessions.length === 1;
  facts.sessions.slice(-6).forEach((session) => {
    const marks = session.faults.map((fault) => ({ time: fault.time, text: [fault.what, fault.engine, fault.error].filter(Boolean).join(": ") }));
    const when = new Date(session.time * 1000).toLocaleString();
    const rate = session.summary.tokens_per_second;
    const said = [`${session.kind === "resumed" ? "resumed" : "begun"} ${when}`, duration(session.seconds), known(rate) ? `${short(rate)} tokens/s` : null, session.finished ? null : "did not finish"];
    const states = [["starting", "starting"], ["running", "running"], ["idle", "idle, no samples left"], ...(marks.length ? [["wrong", `${marks.length} fault${marks.length === 1 ? "" : "s"}`]] : [])];
    const card = h("div", { class: "card session" }, h("div", { class: "heading" }, h("h3", null, said.filter(Boolean).join(" \u00b7 ")), legend(states)));
    if (session.engines.length) {
      card.append(h("div", { class: "scroll" }, gantt("Engines over time", session.engines, session.seconds, marks, session.load)));
      card.append(h("details", null, h("summary", null, "Seconds and tokens by engine"), engineTable(session, facts.engines, single)));
    } else card.append(h("p", { class: "quiet" }, "No engine started, because the results were complete."));
    if (session.note) card.append(h("p", { class: "quiet small" }, session.note));
    if (session.faults.length) card.append(h("details", null, h("summary", null, "Faults"), h("ul", null, marks.slice(0, 200).map(({ time, text }) => h("li", { class: "text" }, `${duration(time)}: ${text}`)))));
    at("engine-cards").append(card);
  });
}

function engineTable(session, counts, single) {
  const accounts = (session.summary.account && session.summary.account.engines) || {};
  const value = (engine, source, key) => (source === "facts" ? engine.facts[key] : (accounts[engine.name] || {})[key]);
  const told = ENGINE_FACTS.filter(([source, key]) => session.engines.some((engine) => known(value(engine, source, key))));
  const counted = told.some(([, key]) => key === "tokens_per_second") ? [] : ["tokens/s"]; // without an account: tokens over the running time
  const columns = ["engine", "starting", "running", "idle", ...told.map(([, , name]) => name), ...(single ? ["trajectories", "tokens", ...counted] : [])];
  const rows = session.engines.map((engine) => {
    const { name, seconds } = engine;
    const mine = counts[name] || {};
    const cells = [duration(seconds.starting), duration(seconds.running), duration(seconds.idle), ...told.map(([source, key, , format]) => format(value(engine, source, key)))];
    if (single) cells.push(whole(mine.trajectories), short(mine.tokens), ...counted.map(() => (seconds.running ? short(mine.tokens / seconds.running) : dash)));
    const phases = engine.facts.phases ? `start: ${JSON.stringify(engine.facts.phases)}` : null;
    return h("tr", null, h("td", { class: "name", title: phases }, name), cells.map((cell) => h("td", { class: "num" }, cell)));
  });
  return h("div", { class: "scroll" }, h("table", null, h("thead", null, h("tr", null, columns.map((name, n) => h("th", { class: n ? "num" : null, scope: "col" }, name)))), h("tbody", null, rows)));
}

function showConfig(facts) {
  const text = (value) => (value === null || value === undefined ? dash : typeof value === "object" ? JSON.stringify(value) : String(value));
  const table = (title, pairs) => h("div", { class: "card" }, h("h3", null, title), h("table", null, h("tbody", null, pairs.map(([name, value]) => h("tr", null, h("td", null, name), h("td", { class: "mono" }, text(value)))))));
  const cards = [table("run", [["model", facts.model], ["dataset", facts.dataset], ["file", facts.file], ...Object.entries(facts.versions)])];
  for (const [section, fields] of Object.entries(facts.config)) {
    const pairs = Object.entries(fields || {}).flatMap(([name, value]) => (value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value).map(([inner, v]) => [`${name}.${inner}`, v]) : [[name, value]]));
    cards.push(table(section, pairs));
  }
  const differences = [];
  for (const [section, fields] of Object.entries(facts.config)) {
    const usual = facts.defaults[section] || {};
    for (const [name, value] of Object.entries(fields || {})) {
      if (JSON.stringify(value) !== JSON.stringify(usual[name])) differences.push([`${section}.${name}`, value]);
    }
  }
  at("config-cards").append(differences.length ? table("Differences from the defaults", differences) : h("p", { class: "card quiet" }, "Every field has its default."));
  at("config-cards").append(h("details", { class: "config" }, h("summary", null, "Every field of this run"), h("div", { class: "pairs" }, cards)));
}
