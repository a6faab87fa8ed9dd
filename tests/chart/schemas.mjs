// schemas.mjs OUT: reads the API server's OpenAPI v3 documents, one a line, and writes a JSON schema for each kind, for kubeconform.
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
      // Keep all components, because references lead to them.
      writeFileSync(`${out}/${name}.json`, JSON.stringify(strict({ ...schema, components })));
      count += 1;
    }
  }
}
console.error(`${count} schemas`);

// Refuse unknown fields, as `kubectl apply --validate=strict` does.
function strict(node) {
  if (Array.isArray(node)) return node.map(strict);
  if (node === null || typeof node !== "object") return node;
  const copy = Object.fromEntries(Object.entries(node).map(([key, value]) => [key, strict(value)]));
  if (copy.type === "object" && copy.properties && !("additionalProperties" in copy) && !copy["x-kubernetes-preserve-unknown-fields"]) copy.additionalProperties = false;
  return copy;
}
