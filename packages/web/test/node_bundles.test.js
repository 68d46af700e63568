/** Damaged bundles in Node: the engine says what the native core says, and no bundle traps. */
import assert from "node:assert/strict";
import {execFileSync} from "node:child_process";
import {mkdtemp, rm} from "node:fs/promises";
import {tmpdir} from "node:os";
import {join} from "node:path";
import {after, before, test} from "node:test";
import {load} from "../src/node.js";
import {ROOT} from "./site.js";

const RANDOM = (process.env.BLIP2RT_DAMAGE ?? "").split(" ").filter(Boolean); // "SEED COUNT": random damage instead
const [PYTHON, SCRIPT] = [join(ROOT, ".venv-dev/bin/python"), join(import.meta.dirname, "damaged_bundles.py")];
let folder, image, bundles;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "damaged-"));
  const printed = execFileSync(PYTHON, [SCRIPT, folder, ...RANDOM], {encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], maxBuffer: 1e9});
  ({image, bundles} = JSON.parse(printed));
  image.data = Uint8Array.from(Buffer.from(image.data, "base64"));
});
after(() => rm(folder, {recursive: true}));

async function said(path) {
  let model;
  try {
    model = await load(path);
    return {text: `${await model.caption(image)}`};
  } catch (error) {
    return {kind: error.name, message: error.message.replaceAll("/bundle", path)};
  } finally { model?.close(); }
}

/** Python and JavaScript say in words of their own that memory ran out, and how to trust a graph. */
function common({kind, message, ...text}) {
  if (message?.includes("out of memory")) return {kind: "MemoryError"};
  return {...text, kind, message: message?.replace("trusted_graphs=True or --trusted-graphs", "trusted_graphs")};
}

test("a damaged bundle gets the native message or text", async (context) => {
  const natively = Object.entries(bundles), kinds = {}, different = [];
  assert.ok(natively.length > 36);
  for (const [name, native] of natively) {
    const found = common(await said(join(folder, name))), wanted = common(native);
    kinds[found.kind ?? "text"] = (kinds[found.kind ?? "text"] ?? 0) + 1;
    try { assert.deepEqual(found, wanted); } catch { different.push({name, found, wanted}); }
  }
  assert.deepEqual(different, []);
  context.diagnostic(JSON.stringify(kinds));
});
