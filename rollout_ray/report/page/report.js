// Starts the page: unpacks the facts and the index, shows everything, and follows the address.

async function start() {
  const facts = await unpack("facts");
  showOverview(facts);
  showArms(facts);
  showCharts(facts);
  showEngines(facts);
  showConfig(facts);
  const browser = new Browser(await unpack("index"), facts);
  addEventListener("hashchange", () => browser.follow());
  await browser.follow();
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  at("failure").hidden = false;
  at("failure").textContent = `This page cannot be shown (${error}). It needs a browser of 2023 or later.`;
  throw error;
});
