// Start the page: unpack facts and index, show everything, and follow the address.

async function start() {
  const facts = await unpack("facts");
  showOverview(facts);
  showArms(facts);
  showFirstPrompt(facts);
  showCharts(facts);
  showEngines(facts);
  showConfig(facts);
  const browser = new Browser(await unpack("index"), facts);
  const header = document.querySelector(".top");
  new ResizeObserver(() => document.documentElement.style.setProperty("--top", `${header.offsetHeight}px`)).observe(header);
  addEventListener("keydown", (event) => browser.turnByKey(event));
  addEventListener("hashchange", () => browser.follow());
  await browser.follow();
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  at("failure").hidden = false;
  at("failure").textContent = `This page cannot be shown (${error}). It needs a browser of 2023 or later.`;
  throw error;
});
