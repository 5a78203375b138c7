// The examples beside examples/hosts/ (those are in hosts.test.ts), run as their reader would run them: processes of
// their own, real keys, the official MCP client.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { get, type IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { describe, it, type TestContext } from 'node:test';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { encryptToken } from 'mcp-auth-middleware';
import { WebSocket } from 'ws';
import { keyPair, root, run, type Scope, serve } from './support/support.js';

const example = (name: string): string => join(root, 'build/examples', name);
const limit = { timeout: 60_000, killSignal: 'SIGKILL' } as const; // a stuck program fails its test, not the run

function temporaryFolder(scope: Scope): string {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
  scope.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function keyFile(scope: Scope): Promise<string> {
  const file = join(temporaryFolder(scope), 'mcp-private.json');
  const { privateJwk } = await keyPair();
  writeFileSync(file, JSON.stringify({ keys: [privateJwk] }), { mode: 0o600 });
  return file;
}

async function token(claims: object): Promise<string> {
  const { publicJwk } = await keyPair();
  return encryptToken(claims, publicJwk);
}

/** Starts an example server on a free port and waits until it says where it listens. */
async function start(
  scope: Scope,
  name: string,
  env: Record<string, string>,
): Promise<{ process: ChildProcess; url: string }> {
  const child = spawn(process.execPath, [example(name)], {
    env: { ...process.env, HOST: '127.0.0.1', PORT: '0', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...limit,
  });
  scope.after(() => child.kill('SIGKILL'));
  const stderr = text(child.stderr);
  for await (const line of createInterface({ input: child.stdout })) {
    const url = /http:\/\/\S+/.exec(line)?.[0];
    if (url) return { process: child, url };
  }
  throw new Error(`${name} ended before it listened: ${await stderr}`);
}

async function callTool(
  url: string,
  bearer: string,
  call: { name: string; arguments?: Record<string, unknown> },
  mode: 'legacy' | 'auto' = 'legacy',
): Promise<unknown> {
  const client = new Client({ name: 'test', version: '1.0.0' }, { versionNegotiation: { mode } });
  const requestInit = { headers: { Authorization: `Bearer ${bearer}` } };
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
  try {
    return (await client.callTool(call)).content;
  } finally {
    await client.close();
  }
}

describe('examples/README.md', () => {
  const folder = join(root, 'examples');
  const links = [...readFileSync(join(folder, 'README.md'), 'utf8').matchAll(/\]\(([^)]+)\)/g)].map(
    ([, link = '']) => link,
  );

  it('links to nothing that is not there', () => {
    for (const link of links) assert.ok(existsSync(join(folder, link)), link);
  });

  it('names every program', () => {
    const programs = ['', 'hosts'].flatMap((name) => readdirSync(join(folder, name)).map((file) => join(name, file)));
    for (const program of programs.filter((file) => /\.(?:ts|html)$/.test(file)))
      assert.ok(links.includes(program), program);
  });
});

describe('examples/server.ts', () => {
  for (const mode of ['legacy', 'auto'] as const) {
    it(`greets the user by name, protocol version negotiation "${mode}"`, async (t) => {
      const { url } = await start(t, 'server.js', { MCP_KEY_FILE_PATH: await keyFile(t) });
      const bearer = await token({ sub: '1', name: 'Ada' });
      assert.deepEqual(await callTool(url, bearer, { name: 'whoami' }, mode), [{ type: 'text', text: 'Hello, Ada!' }]);
      const greet = { name: 'greet', arguments: { greeting: 'Good morning' } };
      assert.deepEqual(await callTool(url, bearer, greet, mode), [{ type: 'text', text: 'Good morning, Ada!' }]);
    });
  }

  it('never takes one of twenty simultaneous users for another', async (t) => {
    const { url } = await start(t, 'server.js', { MCP_KEY_FILE_PATH: await keyFile(t) });
    const names = Array.from({ length: 20 }, (_, i) => `user ${i}`);
    const answers = await Promise.all(
      names.map(async (name) => callTool(url, await token({ name }), { name: 'whoami' })),
    );
    assert.deepEqual(
      answers,
      names.map((name) => [{ type: 'text', text: `Hello, ${name}!` }]),
    );
  });

  it('serves MCP at /mcp only, the probe to anyone and nothing else without a token', async (t) => {
    const { url } = await start(t, 'server.js', { MCP_KEY_FILE_PATH: await keyFile(t) });
    const bearer = { Authorization: `Bearer ${await token({ name: 'Ada' })}` };
    const rows: [path: string, headers: Record<string, string>, status: number][] = [
      ['/healthz', {}, 200],
      ['/healthz/', {}, 401],
      ['/mcp', {}, 401],
      ['/', {}, 401],
      ['/', bearer, 404],
      ['/mcp/', bearer, 404],
    ];
    for (const [path, headers, status] of rows) {
      const response = await fetch(new URL(path, url), { method: 'POST', headers });
      await response.arrayBuffer();
      assert.equal(response.status, status, path);
    }
  });

  it('does not start without a key file and says which setting is missing', async () => {
    const { code, stderr } = await run(process.execPath, [example('server.js')], {
      env: { MCP_KEY_FILE_PATH: undefined },
    });
    assert.notEqual(code, 0);
    assert.match(stderr, /MCP_KEY_FILE_PATH/);
  });

  it('ends on SIGTERM with status 0 although a client keeps its connection', async (t) => {
    const { process: child, url } = await start(t, 'server.js', { MCP_KEY_FILE_PATH: await keyFile(t) });
    await (await fetch(new URL('/healthz', url))).arrayBuffer(); // fetch keeps the connection alive
    const closed = once(child, 'close');
    child.kill('SIGTERM');
    assert.deepEqual(await closed, [0, null]);
  });
});

describe('examples/gateway.ts', () => {
  it('fetches the key, encrypts the claims and prints what the tool answered', async (t) => {
    const { url } = await start(t, 'server.js', { MCP_KEY_FILE_PATH: await keyFile(t) });
    const { code, stdout, stderr } = await run(process.execPath, [example('gateway.js'), url]);
    assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: 'Hello, Ada!\n', stderr: '' });
  });

  it('fails when there is no key set', async (t) => {
    const { url } = await serve(t, (_req, res) => void res.writeHead(404).end());
    const { code, stdout, stderr } = await run(process.execPath, [example('gateway.js'), `${url}/mcp`]);
    assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
    assert.match(stderr, /HTTP 404/);
  });
});

describe('examples/upgrade.ts', () => {
  it('greets a user over a WebSocket, refuses others, and switches to no protocol but that', async (t) => {
    const { url } = await start(t, 'upgrade.js', { MCP_KEY_FILE_PATH: await keyFile(t) });
    const headers = { Authorization: `Bearer ${await token({ name: 'Ada' })}` };
    const socket = new WebSocket(url.replace('http', 'ws'), { headers });
    t.after(() => socket.terminate());
    const [greeting] = await once(socket, 'message');
    assert.equal(String(greeting), 'Hello, Ada!');

    const stranger = new WebSocket(url.replace('http', 'ws'));
    stranger.on('error', () => {}); // the answer says it all
    const [, refusal]: [unknown, IncomingMessage] = (await once(stranger, 'unexpected-response')) as never;
    assert.equal(refusal.statusCode, 401);

    // As Java's HTTP client asks with its defaults (RFC 9110 §7.8).
    const other = get(url, { headers: { ...headers, Connection: 'Upgrade, HTTP2-Settings', Upgrade: 'h2c' } });
    const [answer]: [IncomingMessage] = (await once(other, 'response')) as never;
    assert.equal(answer.statusCode, 400);
    answer.resume();
  });
});

describe('npm start (scripts/demo.ts)', () => {
  const demo = join(root, 'build/scripts/demo.js');

  it('tells the whole story and leaves nothing behind', async (t) => {
    const folder = temporaryFolder(t);
    const { code, stdout, stderr } = await run(process.execPath, [demo], { env: { TMPDIR: folder } });
    assert.deepEqual({ code, stderr }, { code: 0, stderr: '' });
    for (const expected of [
      /Keys generated/,
      /"kid": "/,
      /Hello, Ada!/,
      /HTTP 401/,
      /error="invalid_token"/,
      /Removed:/,
      /Done in/,
    ])
      assert.match(stdout, expected);
    assert.doesNotMatch(stdout, /[\w-]{100}/, 'no whole token and no key');
    assert.doesNotMatch(stdout, /"(?:d|p|q|dp|dq|qi)":/, 'no private member');
    assert.ok(!stdout.includes('\x1b'), 'no colour when it is not a terminal');
    assert.deepEqual(readdirSync(folder), []);
  });

  it('says what went wrong and fails', async (t) => {
    const folder = join(temporaryFolder(t), 'missing');
    const { code, stderr } = await run(process.execPath, [demo], { env: { TMPDIR: folder } });
    assert.equal(code, 1);
    assert.match(stderr, /^error: .*missing/);
  });

  /** Starts the demo and does something to it once it shows a line. */
  async function interrupt(
    t: TestContext,
    line: RegExp,
    act: (child: ChildProcess) => void,
  ): Promise<{ code: unknown; stderr: string; url: string | undefined; left: string[] }> {
    const folder = temporaryFolder(t);
    const child = spawn(process.execPath, [demo], {
      env: { ...process.env, TMPDIR: folder },
      stdio: ['ignore', 'pipe', 'pipe'],
      ...limit,
    });
    t.after(() => child.kill('SIGKILL'));
    const stderr = text(child.stderr);
    const closed = once(child, 'close');
    let url: string | undefined;
    for await (const shown of createInterface({ input: child.stdout })) {
      url ??= /http:\S+\/mcp/.exec(shown)?.[0];
      if (line.test(shown)) act(child);
    }
    const [code] = await closed;
    return { code, stderr: await stderr, url, left: readdirSync(folder) };
  }

  const rows: [when: string, line: RegExp][] = [
    ['while the keys are being made', /^1\. /],
    ['while the server runs', /MCP server at/],
  ];
  for (const [when, line] of rows) {
    it(`leaves nothing behind when it is interrupted ${when}`, async (t) => {
      const { code, stderr, url, left } = await interrupt(t, line, (child) => child.kill('SIGINT'));
      assert.deepEqual({ code, stderr, left }, { code: 130, stderr: 'error: stopped by SIGINT\n', left: [] });
      if (url) await assert.rejects(fetch(url), 'the server still runs');
    });
  }
});
