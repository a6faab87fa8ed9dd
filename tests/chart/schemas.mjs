// schemas.mjs OUT < list of "PATH JSON" lines: the API server's own OpenAPI v3 documents as JSON schemas, one file a kind, for kubeconform.
import { createInterface } from "node:readline";
import { writeFileSync } from "node:fs";

const out = process.argv[2];
let count = 0;
for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const document = JSON.parse(line);
  const components = document.components ?? {};
  for (const schema of Object.values(components.schemas ?? {})) {
    for (const { group, version, kind } of schema["x-kubernetes-group-version-kind"] ?? []) {
      if (kind.endsWith("List") || kind.endsWith("Options") || kind === "WatchEvent" || kind === "Status") continue;
      const name = [kind.toLowerCase(), group.split(".")[0], version].filter(Boolean).join("-");
      // The whole document comes along: references lead into it.
      writeFileSync(`${out}/${name}.json`, JSON.stringify(strict({ ...schema, components })));
      count += 1;
    }
  }
}
console.error(`${count} schemas`);

// A field that there is none of is a mistake, as `kubectl apply --validate=strict` has it.
function strict(node) {
  if (Array.isArray(node)) return node.map(strict);
  if (node === null || typeof node !== "object") return node;
  const copy = Object.fromEntries(Object.entries(node).map(([key, value]) => [key, strict(value)]));
  if (copy.type === "object" && copy.properties && !("additionalProperties" in copy) && !copy["x-kubernetes-preserve-unknown-fields"]) copy.additionalProperties = false;
  return copy;
}
