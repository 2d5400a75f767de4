// Follows every link of a web site, and tells those that lead nowhere.
// The site is served from here, on the loopback address: this job has no other network.
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");

const site = path.join(process.env.JOB_CODE_DIR, "site");

const server = http.createServer((request, response) => {
  const name = path.normalize(request.url === "/" ? "/index.html" : request.url);
  fs.readFile(path.join(site, name), (error, body) => {
    response.writeHead(error ? 404 : 200, { "content-type": "text/html" });
    response.end(error ? "not here" : body);
  });
});

async function check(start) {
  const seen = new Map([[start, "the start"]]);
  const broken = [];
  let external = 0;
  for (const [address, from] of seen) {
    const response = await fetch(address);
    const body = await response.text();
    console.log(`${response.status} ${new URL(address).pathname}`);
    if (!response.ok) {
      broken.push({ page: new URL(address).pathname, status: response.status, linked_from: from });
      continue;
    }
    for (const [, target] of body.matchAll(/href="([^"#]+)/g)) {
      const url = new URL(target, address);
      if (url.origin !== new URL(start).origin) external += 1;
      else if (!seen.has(url.href)) seen.set(url.href, new URL(address).pathname);
    }
  }
  return { checked: seen.size, external, broken };
}

server.listen(0, "127.0.0.1", async () => {
  const report = await check(`http://127.0.0.1:${server.address().port}/`);
  fs.writeFileSync(process.env.JOB_OUTPUT_FILE, JSON.stringify(report));
  server.close();
});
