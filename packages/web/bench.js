/**
 * node packages/web/bench.js [chromium|firefox]...: seconds and memory of build/web in headless browsers, on Linux, as a table.
 * In brackets: processor time of all processes of the browser. Memory is that of the tab's process (PSS).
 */
import {readFileSync, readdirSync} from "node:fs";
import {join} from "node:path";
import {BROWSERS, ROOT, Site, photo} from "./test/site.js";

const RUNS = 5, TICKS_PER_SECOND = 100, data = await photo();

/** pid -> the numbers and texts of /proc/PID/stat behind the command, of a process and its descendants */
function tree(pid) {
  const all = new Map();
  for (const name of readdirSync("/proc")) {
    try {
      if (/^\d+$/.test(name)) all.set(Number(name), readFileSync(`/proc/${name}/stat`, "utf8").replace(/^.*\) /s, "").split(" "));
    } catch { /* it ended */ }
  }
  const inside = (each) => each === pid || (all.has(each) && inside(Number(all.get(each)[1])));
  return new Map([...all].filter(([each]) => inside(each)));
}

const processorSeconds = (pid) => [...tree(pid).values()].reduce((sum, stat) => sum + stat.slice(11, 15).reduce((all, ticks) => all + Number(ticks), 0) / TICKS_PER_SECOND, 0);
const tabMegabytes = (pid) => Math.max(...[...tree(pid).keys()].map((each) => {
  if (!/--type=renderer|-contentproc/.test(readFileSync(`/proc/${each}/cmdline`, "utf8"))) return 0;
  return Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${each}/smaps_rollup`, "utf8"))[1]) * 1024 / 1e6;
}));
const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

async function load() {
  const {load} = await import("/blip2rt-web/src/index.js");
  globalThis.model = await load("model/pieces.json");
}

async function caption(data) { // of a new picture, so that it is encoded
  const blob = new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], {type: "image/jpeg"});
  return String(await globalThis.model.caption(blob, {numBeams: 3}));
}

async function measure(name, isolated) {
  const site = await Site.of(join(ROOT, "build/web"), {isolated}), browser = await BROWSERS[name](), {pid} = browser.process();
  const timed = async (work) => {
    const [begun, used] = [performance.now(), processorSeconds(pid)];
    await work();
    return [(performance.now() - begun) / 1000, processorSeconds(pid) - used];
  };
  const shown = ([wall, used]) => `${wall.toFixed(1)} (${used.toFixed(1)})`;
  const open = async () => {
    const page = await browser.newPage();
    await page.goto(`${site.url}api.html`);
    return page;
  };
  let page;
  const first = await timed(async () => { page = await open(); await page.evaluate(load); });
  await page.evaluate(caption, data);
  await page.close();
  const second = await timed(async () => { page = await open(); await page.evaluate(load); await page.evaluate(caption, data); });
  const times = [];
  for (let i = 0; i < RUNS; i += 1) times.push(await timed(() => page.evaluate(caption, data)));
  const warm = [median(times.map(([wall]) => wall)), median(times.map(([, used]) => used))];
  const threads = isolated ? Math.min(4, await page.evaluate(() => navigator.hardwareConcurrency)) : 1;
  const row = [`${await browser.version()}`, threads, shown(warm), shown(second), shown(first), `${Math.round(tabMegabytes(pid))} MB`];
  await browser.close();
  await site.close();
  return `| ${row.join(" | ")} |`;
}

console.log("| browser | threads | warm caption | second visit to first caption | first visit, loading | memory |");
console.log("| -- | -- | -- | -- | -- | -- |");
const chosen = process.argv.slice(2);
for (const name of chosen.length ? chosen : Object.keys(BROWSERS)) {
  for (const isolated of [true, false]) console.log(await measure(name, isolated));
}
