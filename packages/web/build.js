/** node packages/web/build.js BUNDLE OUT: write the static folder of the page, the package, and a bundle in pieces. */
import {createHash} from "node:crypto";
import {cp, mkdir, readFile, readdir, rm, writeFile} from "node:fs/promises";
import {join, relative} from "node:path";
import {cut} from "./src/cut.js";

const here = import.meta.dirname, shared = join(here, "../../blip2rt/serve/pages");
const [bundle, out] = process.argv.slice(2);
await rm(out, {recursive: true, force: true});
await mkdir(out, {recursive: true});
await cp(shared, out, {recursive: true, filter: (path) => !path.endsWith("docs.html")});
await cp(join(here, "page/browser.js"), join(out, "browser.js"));
for (const folder of ["src", "wasm"]) await cp(join(here, folder), join(out, "blip2rt-web", folder), {recursive: true});
for (const file of ["node.js", "node_worker.js", "cut.js", "command.js"]) await rm(join(out, "blip2rt-web/src", file));
await writeFile(join(out, "ready"), JSON.stringify({status: "static", bundle: "model/pieces.json"}));

const entries = await readdir(out, {recursive: true, withFileTypes: true});
const paths = entries.filter((entry) => entry.isFile()).map(({parentPath, path, name}) => relative(out, join(parentPath ?? path, name))).sort();
const hash = createHash("sha256");
for (const path of paths) hash.update(path).update(await readFile(join(out, path)));
const worker = await readFile(join(here, "page/sw.js"), "utf8"), files = ["./", ...paths];
const version = hash.update(worker).digest("hex").slice(0, 16);
await writeFile(join(out, "sw.js"), worker.replace('VERSION = "", FILES = []', () => `VERSION = "${version}", FILES = ${JSON.stringify(files)}`));
await cut(bundle, join(out, "model"));
