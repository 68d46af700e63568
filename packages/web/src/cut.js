/** Cuts a bundle into the pieces that `load` downloads. */
import {createHash} from "node:crypto";
import {mkdir, readFile, readdir, writeFile} from "node:fs/promises";
import {join} from "node:path";

const PIECE_BYTES = 24_000_000; // hosts such as Cloudflare Pages take files below 25 MB

/** Write OUT/pieces.json and the pieces beside it. Bundles of one manifest give the same pieces. */
export async function cut(bundle, out) {
  const manifest = JSON.parse(await readFile(join(bundle, "blip2rt.json"), "utf8"));
  const names = ["blip2rt.json", ...Object.keys(manifest.files).sort()];
  const present = new Set(await readdir(bundle)), files = [], pieces = [];
  await mkdir(out, {recursive: true});

  let held = [], heldBytes = 0;
  const flush = async () => {
    const hash = createHash("sha256");
    held.forEach((part) => hash.update(part));
    const sha256 = hash.digest("hex");
    await writeFile(join(out, `${sha256}.bin`), Buffer.concat(held));
    pieces.push({sha256, bytes: heldBytes});
    [held, heldBytes] = [[], 0];
  };
  for (const name of names.filter((each) => present.has(each))) {
    let bytes = await readFile(join(bundle, name));
    files.push({name, bytes: bytes.length});
    while (bytes.length) {
      const part = bytes.subarray(0, PIECE_BYTES - heldBytes);
      held.push(part);
      heldBytes += part.length;
      bytes = bytes.subarray(part.length);
      if (heldBytes === PIECE_BYTES) await flush();
    }
  }
  if (heldBytes) await flush();
  const list = {format: "blip2rt-pieces", name: manifest.name, pieces, files};
  await writeFile(join(out, "pieces.json"), `${JSON.stringify(list, null, 1)}\n`);
}
