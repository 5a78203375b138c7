// `node build/scripts/conformance.js`, on Node 22 or later: the protocol's conformance suite against one server, alone
// and behind the middleware, for each revision of the protocol. Every check has to end the same way on both sides. The
// suite sends no token, so a proxy adds one.
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { createServer, request, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { localhostHostValidation, localhostOriginValidation, toNodeHandler } from '@modelcontextprotocol/node';
import { encryptToken, generateKeyPair, withAuth } from 'mcp-auth-middleware';
import { z } from 'zod';
import { conformanceServer } from '../test/support/conformance-server.ts';
import { root } from '../test/support/support.ts';

const REVISIONS = ['2025-11-25', '2026-07-28'];
const SUITE = join(root, 'test/runtimes/node_modules/@modelcontextprotocol/conformance/dist/index.js');

const Checks = z.array(z.looseObject({ id: z.string(), status: z.string(), errorMessage: z.string().optional() }));
/** How each check of each scenario ended. */
type Results = Map<string, { status: string; errorMessage?: string | undefined }>;

async function serve(listener: RequestListener): Promise<Server> {
  const server = createServer(listener).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return server;
}

const portOf = (server: Server): number => (server.address() as AddressInfo).port;

/** Passes everything on as it is, with a token. */
function proxy(port: number, token: string): Promise<Server> {
  return serve((req, res) => {
    const headers = { ...req.headers, authorization: `Bearer ${token}` };
    const onward = request({ port, host: '127.0.0.1', method: req.method, path: req.url, headers }, (answer) => {
      res.writeHead(answer.statusCode ?? 502, answer.headers);
      res.flushHeaders();
      answer.pipe(res);
    });
    onward.on('error', () => res.destroy());
    res.on('close', () => onward.destroy());
    req.pipe(onward);
  });
}

/** Without the middleware the server looks at Host and Origin by the SDK's own means, as the suite wants it to. */
function alone(): RequestListener {
  const handler = toNodeHandler({ fetch: conformanceServer() });
  const [host, origin] = [localhostHostValidation(), localhostOriginValidation()];
  return (req, res) => {
    if (host(req, res) && origin(req, res)) void handler(req, res);
  };
}

async function runSuite(port: number, revision: string): Promise<Results> {
  const output = mkdtempSync(join(tmpdir(), 'mcp-conformance-'));
  const args = [SUITE, 'server', '--url', `http://localhost:${port}/mcp`, '--requirements', revision, '-o', output];
  await promisify(execFile)(process.execPath, args, { timeout: 600_000 }).catch((error: unknown) => {
    // The suite exits with 1 when a check fails: what counts is what it wrote.
    if (!(error instanceof Error && 'code' in error && error.code === 1)) throw error;
  });
  const results: Results = new Map();
  for (const folder of readdirSync(output)) {
    const scenario = folder.replace(/^server-|-\d{4}-\d\d-\d\dT.*$/g, '');
    if (scenario.startsWith('tasks-')) continue; // an extension that the SDK's server does not have
    for (const { id, status, errorMessage } of Checks.parse(
      JSON.parse(readFileSync(join(output, folder, 'checks.json'), 'utf8')),
    ))
      results.set(`${scenario}: ${id}`, { status, errorMessage });
  }
  rmSync(output, { recursive: true });
  return results;
}

function count(results: Results): string {
  const counts = new Map<string, number>();
  for (const { status } of results.values()) counts.set(status, (counts.get(status) ?? 0) + 1);
  return [...counts]
    .sort()
    .map(([status, number]) => `${number} ${status}`)
    .join(', ');
}

/** Prints both sides of one revision, and what differs; returns whether nothing does. */
function compare(revision: string, without: Results, behind: Results): boolean {
  console.log(`${revision} without the middleware: ${count(without)}`);
  console.log(`${revision} behind the middleware:  ${count(behind)}`);
  for (const [name, { status, errorMessage }] of without)
    if (status === 'FAILURE') console.log(`  fails on both sides: ${name}: ${errorMessage}`);
  const names = [...new Set([...without.keys(), ...behind.keys()])];
  const different = names.filter((name) => without.get(name)?.status !== behind.get(name)?.status);
  for (const name of different) {
    const [before, after] = [without.get(name), behind.get(name)];
    console.log(`  DIFFERENT: ${name}: ${before?.status} without, ${after?.status} behind: ${after?.errorMessage}`);
  }
  const passed = [...behind.values()].filter(({ status }) => status === 'SUCCESS').length;
  return different.length === 0 && passed > 40;
}

const { privateJwk, publicJwk } = await generateKeyPair({ modulusLength: 2048 });
const token = await encryptToken({ sub: 'conformance' }, publicJwk);
const guarded = withAuth(toNodeHandler({ fetch: conformanceServer() }), {
  keys: { keys: [privateJwk] },
});
const [bare, behind] = await Promise.all([serve(alone()), serve(guarded)]);
const front = await proxy(portOf(behind), token);
let same = true;
for (const revision of REVISIONS) {
  const results = [await runSuite(portOf(bare), revision), await runSuite(portOf(front), revision)] as const;
  same = compare(revision, ...results) && same;
}
for (const server of [bare, behind, front]) {
  server.closeAllConnections();
  server.close();
}
console.log(same ? 'The same counts behind the middleware as without it' : 'FAILED');
process.exitCode = same ? 0 : 1;
