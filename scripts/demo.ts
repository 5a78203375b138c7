// `npm start`: the whole story once, on real parts. Keys made by the command, the example server as a process of its
// own, a token made from the key it publishes, a tool call through the official MCP client; then without a good token.
import { type ChildProcess, type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { encryptToken, type JwkSet } from 'mcp-auth-middleware';

const root = fileURLToPath(new URL('../..', import.meta.url)); // this file runs as build/scripts/demo.js
const cli = join(root, 'dist/cli.js');
const started = performance.now();

// Whatever ends the demo early aborts this: Ctrl-C, a closed pipe, a machine on which nothing moves any more.
const early = new AbortController();
const children = new Set<ChildProcess>();
function stop(reason: string, exitCode: number): void {
  process.exitCode = exitCode;
  early.abort(new Error(reason));
  for (const child of children) child.kill('SIGKILL');
}

const colour = process.stdout.isTTY && !process.env.NO_COLOR;
const paint = (code: number, line: string): string => (colour ? `\x1b[${code}m${line}\x1b[0m` : line);
const show = (lines: string): void => console.log(lines.trimEnd().replace(/^/gm, '     '));
const code = (line: string): void => console.log(`   ${paint(36, line)}`);
/** A key's modulus and a token are hundreds of characters long, which no one reads. */
const shorten = (long: string): string => `${long.slice(0, 24)}…${long.slice(-6)}`;

let steps = 0;
function step(title: string): void {
  early.signal.throwIfAborted();
  steps += 1;
  console.log(`\n${paint(1, `${steps}. ${title}`)}`);
}

/** Starts a script of this repository; cleanUp ends it, if nothing else has. */
function start(
  cwd: string,
  script: string,
  args: string[],
  env: NodeJS.ProcessEnv = process.env,
): ChildProcessByStdio<null, Readable, Readable> {
  early.signal.throwIfAborted();
  const child = spawn(process.execPath, [script, ...args], { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
  children.add(child);
  child.once('close', () => children.delete(child));
  return child;
}

/** Runs the built command and returns what it printed. */
async function command(cwd: string, ...args: string[]): Promise<string> {
  const child = start(cwd, cli, args);
  const [stdout, stderr, [status]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]);
  if (status !== 0) throw new Error(`mcp-auth-middleware ${args.join(' ')} failed: ${stderr.trim()}`);
  return stdout;
}

/** Waits for the line with which the server says where it listens. */
async function address(server: ChildProcessByStdio<null, Readable, Readable>): Promise<string> {
  const problem = text(server.stderr);
  for await (const line of createInterface({ input: server.stdout })) {
    const url = /http:\/\/\S+/.exec(line)?.[0];
    if (url) return url;
  }
  throw new Error(`the server did not start: ${(await problem).trim()}`);
}

async function callTool(url: string, token: string, name: string): Promise<string> {
  const client = new Client({ name: 'demo', version: '1.0.0' });
  const requestInit = { headers: { Authorization: `Bearer ${token}` } };
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
  const { content } = await client.callTool({ name });
  await client.close();
  const [part] = content;
  return part?.type === 'text' ? part.text : '';
}

/** Sends the request a client starts with and shows the refusal as it is on the wire. */
async function showRefusal(url: string, headers: Record<string, string>): Promise<void> {
  const response = await fetch(url, { method: 'POST', headers, signal: early.signal });
  show(`HTTP ${response.status}`);
  show(`WWW-Authenticate: ${response.headers.get('www-authenticate')}`);
  show(await response.text());
  if (response.status !== 401) throw new Error(`the server answered ${response.status}, not 401`);
}

/** Makes the keys and starts the example server with them. */
async function startServer(folder: string): Promise<{ server: ChildProcess; url: string }> {
  step("Make the server's key pair (RSA-4096)");
  code('$ npx --no mcp-auth-middleware generate');
  show(await command(folder, 'generate'));
  show(`(in ${folder})`);

  step('Start an MCP server behind the middleware: examples/server.ts');
  code('$ MCP_KEY_FILE_PATH=.keys/mcp-private.json node server.ts');
  code('createServer(withAuth(handler)).listen(port)');
  const env = { ...process.env, MCP_KEY_FILE_PATH: '.keys/mcp-private.json', HOST: '127.0.0.1', PORT: '0' };
  const server = start(folder, join(root, 'build/examples/server.js'), [], env);
  const url = await address(server);
  show(`MCP server at ${url}`);
  return { server, url };
}

async function fetchKeySet(url: string): Promise<JwkSet> {
  step('Fetch its public key, as whoever wants to tell it about a user does');
  const jwksUrl = new URL('/.well-known/jwks.json', url);
  code(`$ curl ${jwksUrl}`);
  const response = await fetch(jwksUrl, { signal: early.signal });
  if (!response.ok) throw new Error(`no key set at ${jwksUrl}: HTTP ${response.status}`);
  const jwks = (await response.json()) as JwkSet; // encryptToken checks what it uses of it
  const brief = (_: string, value: unknown): unknown =>
    typeof value === 'string' && value.length > 64 ? shorten(value) : value;
  show(JSON.stringify(jwks, brief, 2));
  return jwks;
}

async function tell(folder: string): Promise<void> {
  const { server, url } = await startServer(folder);
  const jwks = await fetchKeySet(url);

  step("Encrypt the user's claims to that key: only this server can read them");
  code("const claims = { sub: 'user-1', name: 'Ada' };");
  code('const token = await encryptToken(claims, jwks, { expiresIn: 300 });');
  const token = await encryptToken({ sub: 'user-1', name: 'Ada' }, jwks, { expiresIn: 300 });
  show(`${shorten(token)}  (a JWE of ${token.length} characters)`);

  step('Call the tool whoami with it, through the official MCP client');
  code(`Authorization: Bearer ${shorten(token)}`);
  const answer = await callTool(url, token, 'whoami');
  show(paint(32, answer));
  if (answer !== 'Hello, Ada!') throw new Error('whoami did not answer "Hello, Ada!"');

  step('The same without a token');
  await showRefusal(url, {});

  step('And with one character of the token changed');
  const middle = token.lastIndexOf('.') - 8; // in the ciphertext
  const tampered = token.slice(0, middle) + (token[middle] === 'A' ? 'B' : 'A') + token.slice(middle + 1);
  await showRefusal(url, { Authorization: `Bearer ${tampered}` });

  step('Stop the server and destroy the keys');
  code('$ npx --no mcp-auth-middleware clean');
  server.kill('SIGINT'); // SIGTERM would have it wait for a load balancer
  await once(server, 'close');
  show(await command(folder, 'clean'));
  if (existsSync(join(folder, '.keys/mcp-private.json'))) throw new Error('the private key is still there');
}

/** Leaves no process and no file behind, however it ended. */
async function cleanUp(folder: string): Promise<void> {
  await Promise.all(
    [...children].map((child) => {
      const closed = once(child, 'close');
      child.kill('SIGKILL');
      return closed;
    }),
  );
  rmSync(folder, { recursive: true, force: true });
}

async function main(): Promise<void> {
  console.log('mcp-auth-middleware: an MCP server learns who is asking, from the key pair to the tool call.');
  const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-demo-'));
  try {
    await tell(folder);
  } finally {
    await cleanUp(folder);
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(
    `\n${paint(32, `Done in ${seconds} s; nothing is left behind.`)}`,
    'To go on, copy examples/server.ts and read README.md.',
  );
  console.log(
    'Mind: these claims are confidential, but whoever can fetch the key could have made them.',
    'README.md says how to have them signed.',
  );
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.once(signal, () => stop(`stopped by ${signal}`, 128 + constants.signals[signal]));
}
process.stdout.on('error', () => stop('the output was closed', 1));
const deadline = setTimeout(() => stop('not done after two minutes', 1), 120_000);
try {
  await main();
} catch (error) {
  const cause: unknown = early.signal.aborted ? early.signal.reason : error; // not what broke because of the abort
  console.error(`error: ${cause instanceof Error ? cause.message : cause}`);
  process.exitCode ||= 1;
} finally {
  clearTimeout(deadline);
}
