// The places an MCP server lives in: every example of examples/hosts/ as a process of its own, under the same checks.
// Prints what held.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { RequestListener } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { after, before, describe, it } from 'node:test';
import { pathToFileURL } from 'node:url';
import {
  Client,
  ClientCredentialsProvider,
  InsufficientScopeError,
  StreamableHTTPClientTransport,
  type Transport,
} from '@modelcontextprotocol/client';
import { Client as ClientOfSdk1 } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport as TransportOfSdk1 } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { build } from 'esbuild';
import { encryptToken, type PrivateSigningJwk, publicJwks } from 'mcp-auth-middleware';
import { Agent, fetch as fetchOfUndici } from 'undici';
import { WebSocket } from 'ws';
import { findProgram, keyPair, needs, root, run, serve } from './support/support.js';

// ## The hosts
// ------------

type Check = 'challenge' | 'JWKS' | 'CORS' | 'session';
interface Host {
  name: string;
  /** In examples/hosts/. */
  example: string;
  /** What is run in `folder`, where keys, certificate and copies are; without it Node runs the built example. */
  command?: (folder: string) => string[] | Promise<string[]>;
  /** Where it runs, if not in `folder`. */
  cwd?: string;
  /** The program that the command needs. */
  needs?: string;
  scheme?: 'https' | 'ws';
  /** Over TLS: the protocol that the client asks for. */
  http2?: boolean;
  mcp?: string;
  jwks?: string;
  /** The newest protocol revision that its SDK speaks: v1 stays with that of 2025. */
  revision: '2025-11-25' | '2026-07-28';
  /** Checks that do not apply, with the reason. */
  absent?: Partial<Record<Check, string>>;
}

const built = (file: string): string => join(root, 'build', file.replace(/\.ts$/, '.js'));
const source = (file: string): string => join(root, 'examples/hosts', file);
const [sdk1, sdk2] = ['2025-11-25', '2026-07-28'] as const;
const freePort = pathToFileURL(built('test/support/free-port.ts')).href;
const node = (...args: string[]): string[] => [process.execPath, '--import', freePort, ...args];
/** A runtime on the path, else one of test/runtimes/. */
const runtime = (name: string, file: string): string =>
  findProgram(name) ?? join(root, 'test/runtimes/node_modules', file, name);
const runtimes = {
  bun: runtime('bun', '@oven/bun-linux-x64/bin'),
  deno: runtime('deno', '@deno/linux-x64-glibc'),
  workerd: runtime('workerd', '@cloudflare/workerd-linux-64/bin'),
};

/** The same example with Express 4: what the import names is all that differs. */
function onExpress4(example: string): string[] {
  const file = built(`examples/hosts/${example.replace('.ts', '-4.ts')}`);
  const code = readFileSync(built(`examples/hosts/${example}`), 'utf8');
  assert.match(code, / from 'express';/);
  writeFileSync(file, code.replace(" from 'express';", " from 'express4';"));
  return node(file);
}

/** What wrangler does: one module for the worker, and the secret as a binding. */
async function inWorkerd(folder: string): Promise<string[]> {
  await build({
    entryPoints: [source('workers.ts')],
    outfile: join(folder, 'worker.mjs'),
    bundle: true,
    format: 'esm',
    conditions: ['workerd', 'worker', 'import'],
    external: ['node:*'],
    logLevel: 'warning',
  });
  writeFileSync(
    join(folder, 'workerd.capnp'),
    `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [(name = "worker.mjs", esModule = embed "worker.mjs")],
    compatibilityDate = "2026-06-01", compatibilityFlags = ["nodejs_compat"],
    bindings = [(name = "MCP_KEYS", text = embed "mcp-private.json")],
  ))],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")]
);`,
  );
  return [runtimes.workerd, 'serve', '--control-fd=1', 'workerd.capnp'];
}

const deno = ['--no-prompt', '--allow-net', '--allow-read', '--allow-env'];
const hosts: Host[] = [
  { name: 'node:http, SDK v2', example: 'node.ts', revision: sdk2 },
  { name: 'node:http, SDK v1, stateful', example: 'node-sdk1-stateful.ts', revision: sdk1 },
  { name: 'node:http, SDK v1, stateless', example: 'node-sdk1-stateless.ts', revision: sdk1 },
  { name: 'node:http, SDK v1, JSON', example: 'node-sdk1-json.ts', revision: sdk1 },
  { name: 'node:https', example: 'https.ts', scheme: 'https', revision: sdk2 },
  { name: 'node:http2', example: 'http2.ts', scheme: 'https', http2: true, revision: sdk2 },
  { name: 'Express 5', example: 'express.ts', revision: sdk2 },
  { name: 'Express 5, one route', example: 'express-route.ts', revision: sdk2 },
  {
    name: 'Express 5, a router',
    example: 'express-router.ts',
    mcp: '/api/mcp',
    jwks: '/api/jwks.json',
    revision: sdk2,
  },
  { name: 'Express 4', example: 'express.ts', command: () => onExpress4('express.ts'), revision: sdk2 },
  {
    name: 'Express 4, one route',
    example: 'express-route.ts',
    command: () => onExpress4('express-route.ts'),
    revision: sdk2,
  },
  {
    name: 'Express 4, a router',
    example: 'express-router.ts',
    command: () => onExpress4('express-router.ts'),
    mcp: '/api/mcp',
    jwks: '/api/jwks.json',
    revision: sdk2,
  },
  { name: 'Fastify 5', example: 'fastify.ts', revision: sdk2 },
  { name: 'Fastify 5, fastify-plugin', example: 'fastify-plugin.ts', revision: sdk2 },
  { name: 'Koa 3', example: 'koa.ts', revision: sdk2 },
  { name: 'Nest 11', example: 'nest.ts', revision: sdk2 },
  { name: 'Hono on Node', example: 'hono.ts', revision: sdk2 },
  { name: 'Hono, as its middleware', example: 'hono-middleware.ts', revision: sdk2 },
  {
    name: 'Hono, fetch (bun)',
    example: 'fetch.ts',
    command: () => [runtimes.bun, source('fetch.ts')],
    needs: runtimes.bun,
    revision: sdk2,
  },
  {
    name: 'Hono, fetch (deno serve)',
    example: 'fetch.ts',
    command: () => [runtimes.deno, 'serve', ...deno, source('fetch.ts')],
    cwd: root, // from where Deno finds node_modules
    needs: runtimes.deno,
    revision: sdk2,
  },
  {
    name: 'mcp-handler, Next-style routes',
    example: 'next.ts',
    command: () =>
      node(
        built('test/support/routes.ts'),
        `/api/mcp=${built('examples/hosts/next.ts')}`,
        `/.well-known/jwks.json=${built('examples/hosts/next.ts')}`,
      ),
    mcp: '/api/mcp',
    revision: sdk2,
  },
  { name: 'h3 on srvx', example: 'h3.ts', revision: sdk2 },
  {
    name: 'Lambda, serverless-http',
    example: 'lambda.ts',
    command: () => node(built('test/support/lambda.ts'), built('examples/hosts/lambda.ts')),
    revision: sdk2,
  },
  {
    name: 'Bun.serve',
    example: 'bun.ts',
    command: () => [runtimes.bun, source('bun.ts')],
    needs: runtimes.bun,
    revision: sdk2,
  },
  {
    name: 'Deno.serve',
    example: 'deno.ts',
    command: () => [runtimes.deno, 'run', ...deno, source('deno.ts')],
    needs: runtimes.deno,
    revision: sdk2,
  },
  { name: 'Workers (workerd)', example: 'workers.ts', command: inWorkerd, needs: runtimes.workerd, revision: sdk2 },
  {
    name: 'fastmcp',
    example: 'fastmcp.ts',
    revision: sdk1, // it puts the SDK into sessions of its own
    absent: {
      CORS: 'fastmcp answers preflights itself, by its own option',
      session: 'the example is stateless, and no middleware sees fastmcp’s answers',
    },
  },
  {
    name: 'WebSocket, ws',
    example: 'ws.ts',
    scheme: 'ws',
    revision: sdk1, // SDK v2 speaks that of 2026 over HTTP and stdio only
    absent: {
      CORS: 'a page can give its handshake no header, and so no token',
      session: 'the connection is the session, and one user’s',
    },
  },
];

// ## Keys and users
// -----------------

const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-hosts-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const users = ['ada', 'bob'] as const;
type Name = (typeof users)[number];
const tokens = new Map<Name, string>();
const authorization = (name: Name): { authorization: string } => ({ authorization: `Bearer ${tokens.get(name)}` });

before(async () => {
  const { privateJwk } = await keyPair();
  writeFileSync(join(folder, 'mcp-private.json'), JSON.stringify({ keys: [privateJwk] }), { mode: 0o600 });
  const jwks = publicJwks({ keys: [privateJwk] });
  for (const name of users) tokens.set(name, await encryptToken({ sub: name, client_id: `app of ${name}` }, jwks));
});

/** A certificate for 127.0.0.1, which no program of Node's can make. */
async function makeCertificate(): Promise<void> {
  const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1', '-days', '2'];
  const files = ['-keyout', 'tls.key', '-out', 'tls.crt'];
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  const { code, stderr } = await run('openssl', ['req', '-x509', ...key, ...subject, ...files], { cwd: folder });
  assert.equal(code, 0, stderr);
}

// ## A host that runs
// -------------------

/** The port is in the parent's message (free-port), in the address that the runtime prints, or in workerd's JSON. */
async function findPort(child: ChildProcess): Promise<number> {
  let output = '';
  return new Promise((resolve, reject) => {
    const read = (chunk: Buffer): void => {
      output += String(chunk);
      const [, port] = /(?:\w+:\/\/[^/\s]+:|"port":\s*)(\d+)\D/.exec(output) ?? [];
      if (port !== undefined && !child.channel) resolve(Number(port)); // else the port that was asked for
    };
    child.stdout?.on('data', read);
    child.stderr?.on('data', read);
    child.once('message', (message: { port: number }) => resolve(message.port));
    child.once('error', reject);
    child.once('close', (code) => reject(new Error(`ended with ${code} before it listened:\n${output}`)));
  });
}

/** undici's fetch, of which Node's is a copy: its types are not those of the global one. */
const fetchOverTls = fetchOfUndici as unknown as (url: string | URL, init: object) => Promise<Response>;

class Running {
  readonly #child: ChildProcess;
  readonly #host: Host;
  readonly url: URL;
  /** As a browser, a client or curl would use it; over TLS it trusts the test's certificate. */
  readonly fetch: (url: string | URL, init?: RequestInit) => Promise<Response>;
  readonly #agent: Agent | undefined;

  private constructor(child: ChildProcess, host: Host, port: number) {
    this.#child = child;
    this.#host = host;
    this.url = new URL(host.mcp ?? '/mcp', `${host.scheme === 'https' ? 'https' : 'http'}://127.0.0.1:${port}`);
    if (host.scheme === 'https') {
      const ca = readFileSync(join(folder, 'tls.crt'));
      const agent = new Agent({ allowH2: host.http2 === true, connect: { ca } });
      this.#agent = agent;
      this.fetch = (url, init) => fetchOverTls(url, { ...init, dispatcher: agent });
    } else this.fetch = fetch;
  }

  static async start(host: Host): Promise<Running> {
    if (host.scheme === 'https') await makeCertificate();
    const command = (await host.command?.(folder)) ?? node(built(`examples/hosts/${host.example}`));
    const [program = '', ...args] = command;
    const isNode = program === process.execPath;
    const child = spawn(program, args, {
      cwd: host.cwd ?? folder,
      env: {
        ...process.env,
        MCP_KEY_FILE_PATH: join(folder, 'mcp-private.json'),
        PORT: '0',
        DENO_SERVE_ADDRESS: 'tcp:127.0.0.1:0',
        NO_COLOR: '1',
      },
      stdio: ['ignore', 'pipe', 'pipe', ...(isNode ? (['ipc'] as const) : [])],
      timeout: 120_000,
      killSignal: 'SIGKILL',
    });
    try {
      return new Running(child, host, await findPort(child));
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  async stop(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#agent?.destroy();
  }

  get jwks(): URL {
    return new URL(this.#host.jwks ?? '/.well-known/jwks.json', this.url);
  }

  /** A message as a client posts it, or another request to the endpoint. */
  async send(init: RequestInit & { headers?: Record<string, string> }): Promise<{ head: Response; body: string }> {
    const accept = 'application/json, text/event-stream';
    const headers = { accept, 'content-type': 'application/json', ...init.headers };
    const head = await this.fetch(this.url, { method: 'POST', ...init, headers, signal: AbortSignal.timeout(20_000) });
    return { head, body: await head.text() };
  }

  /** The transport that the official clients share: over HTTP their own, over a WebSocket one on `ws`. */
  transport<T>(Streamable: new (url: URL, options: object) => T, name: Name): T | Transport {
    if (this.#host.scheme === 'ws') return overWebSocket(this.url, authorization(name));
    return new Streamable(this.url, { requestInit: { headers: authorization(name) }, fetch: this.fetch });
  }
}

function overWebSocket(url: URL, headers: Record<string, string>): Transport {
  const socket = new WebSocket(url, { headers });
  const transport: Transport = {
    start: () =>
      new Promise((resolve, reject) => {
        socket.once('open', resolve).once('error', reject);
        socket.on('message', (data) => transport.onmessage?.(JSON.parse(String(data))));
        socket.on('close', () => transport.onclose?.());
      }),
    send: async (message) => socket.send(JSON.stringify(message)),
    close: async () => socket.close(),
  };
  return transport;
}

// ## What holds
// -------------

interface Caller {
  /** The protocol revision that client and server agreed on. */
  revision: string | undefined;
  ask: () => Promise<unknown>;
  close: () => Promise<void>;
}
const clients: Record<string, (running: Running, name: Name) => Promise<Caller>> = {
  'client v1': async (running, name) => {
    const client = new ClientOfSdk1({ name, version: '1.0.0' });
    let revision: string | undefined;
    const transport = running.transport(TransportOfSdk1, name);
    const setProtocolVersion = transport.setProtocolVersion?.bind(transport);
    transport.setProtocolVersion = (version) => {
      revision = version;
      setProtocolVersion?.(version);
    };
    await client.connect(transport as TransportOfSdk1);
    const ask = async (): Promise<unknown> => (await client.callTool({ name: 'whoami', arguments: {} })).content;
    return { revision, ask, close: () => client.close() };
  },
  'client v2': async (running, name) => {
    const client = new Client({ name, version: '1.0.0' }, { versionNegotiation: { mode: 'auto' } });
    await client.connect(running.transport(StreamableHTTPClientTransport, name));
    const ask = async (): Promise<unknown> => (await client.callTool({ name: 'whoami', arguments: {} })).content;
    return { revision: client.getNegotiatedProtocolVersion(), ask, close: () => client.close() };
  },
};

/** Two users with a client each, whose calls overlap: the tool says who getUser() and who the SDK think is asking. */
async function callAsTwo(running: Running, connect: (typeof clients)[string]): Promise<string | undefined> {
  const callers = await Promise.all(users.map((name) => connect(running, name)));
  try {
    const order = Array.from({ length: 12 }, (_, index) => index % users.length);
    const answers = await Promise.all(order.map((index) => callers[index]?.ask()));
    assert.deepEqual(
      answers,
      order.map((index) => [{ type: 'text', text: `${users[index]} through app of ${users[index]}` }]),
    );
    assert.equal(callers[0]?.revision, callers[1]?.revision);
    return callers[0]?.revision;
  } finally {
    await Promise.all(callers.map(({ close }) => close()));
  }
}

const message = (method: string, params: object = {}): string =>
  JSON.stringify({ jsonrpc: '2.0', id: 1, method, params });
const clientInfo = { name: 'test', version: '1.0.0' };
const initialize = message('initialize', { protocolVersion: sdk1, capabilities: {}, clientInfo });
const PAGE = 'https://app.example';

const checks: Record<Check, (running: Running) => Promise<void>> = {
  challenge: async (running) => {
    const { head, body } = await running.send({ body: initialize });
    assert.equal(head.status, 401);
    assert.equal(head.headers.get('www-authenticate'), 'Bearer'); // RFC 6750 §3.1: no error code without a token
    assert.equal(JSON.parse(body).error_description, 'An access token is required');
    const refused = await running.send({ body: initialize, headers: { authorization: 'Bearer x' } });
    assert.equal(refused.head.status, 401);
    assert.match(refused.head.headers.get('www-authenticate') ?? '', /^Bearer error="invalid_token"/);
    assert.equal(refused.body, '{"error":"invalid_token","error_description":"The access token is invalid"}');
  },

  JWKS: async (running) => {
    const head = await running.fetch(running.jwks, { headers: { origin: 'https://anywhere.example' } });
    assert.equal(head.status, 200);
    assert.match(head.headers.get('content-type') ?? '', /^application\/json/);
    assert.equal(head.headers.get('access-control-allow-origin'), '*');
    assert.equal(head.headers.get('cache-control'), 'public, max-age=300');
    const { privateJwk } = await keyPair();
    assert.deepEqual(await head.json(), publicJwks({ keys: [privateJwk] }));
  },

  CORS: async (running) => {
    const origin = { origin: PAGE };
    const asks = { 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' };
    const preflight = await running.send({ method: 'OPTIONS', headers: { ...origin, ...asks } });
    assert.equal(preflight.head.status, 204);
    assert.match(
      preflight.head.headers.get('access-control-allow-headers') ?? '',
      /\bauthorization\b.*mcp-session-id/i,
    );
    const known = await running.send({ body: initialize, headers: { ...origin, ...authorization('ada') } });
    const stranger = await running.send({ body: initialize, headers: origin });
    for (const { head } of [preflight, known, stranger]) {
      assert.equal(head.headers.get('access-control-allow-origin'), PAGE);
      assert.match(head.headers.get('access-control-expose-headers') ?? '', /WWW-Authenticate, Mcp-Session-Id/);
    }
    assert.deepEqual([known.head.status, stranger.head.status], [200, 401]);
    const evil = await running.send({
      body: initialize,
      headers: { ...authorization('ada'), origin: 'https://b.example' },
    });
    assert.equal(evil.head.status, 403);
    assert.equal(evil.head.headers.get('access-control-allow-origin'), null);
  },

  session: async (running) => {
    const { head } = await running.send({ body: initialize, headers: authorization('ada') });
    assert.equal(head.status, 200);
    // A server without sessions names none; then the one who uses an id first keeps it.
    const session = {
      'mcp-session-id': head.headers.get('mcp-session-id') ?? 'an-id-of-the-client',
      'mcp-protocol-version': sdk1,
    };
    const list = (name: Name): ReturnType<Running['send']> =>
      running.send({ body: message('tools/list'), headers: { ...session, ...authorization(name) } });
    assert.equal((await list('ada')).head.status, 200);
    const stolen = await list('bob');
    assert.equal(stolen.head.status, 404);
    assert.deepEqual(JSON.parse(stolen.body), {
      jsonrpc: '2.0',
      error: { code: -32001, message: 'Session not found' },
      id: null,
    });
    assert.equal((await list('ada')).head.status, 200, 'the owner goes on');
  },
};

// ## The table
// ------------

const columns = [...Object.keys(clients), 'challenge', 'JWKS', 'CORS', 'session', 'lines'];
const results = hosts.map(({ name }) => ({ name, cells: new Map<string, string>() }));
const lineCount = (file: string): number => readFileSync(file, 'utf8').trimEnd().split('\n').length;

function drawTable(): string {
  const rows = results.map(({ name, cells }) => [name, ...columns.map((column) => cells.get(column) ?? 'FAILED')]);
  const table = [['host', ...columns], ...rows];
  const widths = table[0]?.map((_, column) => Math.max(...table.map((row) => row[column]?.length ?? 0))) ?? [];
  const lines = table.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  );
  const reasons = hosts.flatMap(({ name, absent = {} }) =>
    Object.entries(absent).map(([check, reason]) => `(${check} does not apply to ${name}: ${reason})`),
  );
  return [...lines, ...reasons].join('\n');
}
after(() => console.log(`\n${drawTable()}\n`));

/** Fails in CI where a runtime is missing, and says elsewhere why it is not run. */
function missing({ needs: program, scheme }: Host): string | false {
  if (scheme === 'https') return needs('openssl').skip;
  return program === undefined || existsSync(program) || process.env.CI ? false : `${program} is not installed`;
}

for (const [index, host] of hosts.entries()) {
  const { name, example, absent = {}, revision } = host;
  const cells = results[index]?.cells ?? assert.fail();
  const skip = missing(host);
  describe(`${name}: examples/hosts/${example}`, { skip }, () => {
    if (skip) for (const column of columns) cells.set(column, 'not run');
    let running: Running;
    before(async () => {
      running = await Running.start(host);
      cells.set('lines', String(lineCount(source(example))));
    });
    after(() => running?.stop());

    for (const [client, connect] of Object.entries(clients))
      it(`two users at once, each called by its name, through the official ${client}`, async () => {
        const agreed = await callAsTwo(running, connect);
        assert.equal(agreed, client === 'client v2' ? revision : sdk1);
        cells.set(client, agreed ?? '');
      });

    for (const check of ['challenge', 'JWKS', 'CORS', 'session'] as const) {
      if (absent[check] === undefined)
        it(`${check}`, async () => {
          await checks[check](running);
          cells.set(check, 'ok');
        });
      else cells.set(check, '-');
    }
  });
}

// ## What single examples show beside that
// ----------------------------------------

describe('examples/hosts/express.ts', () => {
  let running: Running;
  before(async () => {
    running = await Running.start({ name: 'Express', example: 'express.ts', revision: sdk2 });
  });
  after(() => running?.stop());

  it('asks for a token everywhere but at the probe, and for the claim sub', async () => {
    const nobody = await encryptToken({ name: 'Ada' }, (await keyPair()).publicJwk);
    const rows: [path: string, headers: Record<string, string>, status: number, body: RegExp][] = [
      ['/healthz', {}, 200, /^OK$/],
      ['/.well-known/jwks.json', {}, 200, /"keys"/],
      ['/me', {}, 401, /required/],
      ['/me', { authorization: `Bearer ${nobody}` }, 403, /"missing":\["sub"\]/],
      ['/me', authorization('ada'), 200, /"sub":"ada"/],
    ];
    for (const [path, headers, status, body] of rows) {
      const response = await fetch(new URL(path, running.url), { headers });
      assert.equal(response.status, status, path);
      assert.match(await response.text(), body, path);
    }
  });

  it('knows the user in a tool although express.json() has read the body', async () => {
    const call = message('tools/call', { name: 'whoami', arguments: {} });
    const { head, body } = await running.send({ body: call, headers: authorization('bob') });
    assert.equal(head.status, 200);
    assert.match(body, /"text":"bob through app of bob"/);
  });
});

describe('examples/hosts/ws.ts', () => {
  let running: Running;
  before(async () => {
    running = await Running.start({ name: 'ws', example: 'ws.ts', scheme: 'ws', revision: sdk1 });
  });
  after(() => running?.stop());

  /** How the server ends a handshake: 101, or the status and challenge of its refusal. */
  const handshake = (headers: Record<string, string>, query = ''): Promise<[status: number, challenge?: string]> =>
    new Promise((resolve, reject) => {
      const socket = new WebSocket(new URL(`/mcp${query}`, running.url), { headers });
      socket.once('error', reject);
      socket.once('open', () => {
        resolve([101]);
        socket.close();
      });
      socket.once('unexpected-response', (_req, res) => {
        resolve([res.statusCode ?? 0, res.headers['www-authenticate'] ?? '']);
        res.destroy();
      });
    });

  it('opens a WebSocket for a user, and answers a message that is no JSON by closing it', async () => {
    const socket = new WebSocket(running.url, { headers: authorization('ada') });
    await once(socket, 'open');
    socket.send('not JSON');
    const [code] = await once(socket, 'close');
    assert.equal(code, 1007);
    assert.deepEqual(await handshake(authorization('ada')), [101], 'still serves');
  });

  it('refuses the handshake without a token, with a wrong one and with one in the query string', async () => {
    const refused = [401, 'Bearer'];
    assert.deepEqual(await handshake({}), refused);
    assert.deepEqual(await handshake({ authorization: 'Bearer nonsense' }), refused);
    assert.deepEqual(await handshake({}, `?access_token=${tokens.get('ada')}`), refused);
    assert.deepEqual(await handshake(authorization('ada')), [101], 'still serves');
  });
});

// ## Scopes for each tool
// -----------------------

describe('examples/hosts/step-up.ts', () => {
  /** What the issuer was asked for, in order. */
  const granted: string[] = [];
  let running: Running;
  let signing: PrivateSigningJwk;

  /** An authorization server for one client: gives it the scopes that it asks for, for the MCP server alone. */
  const authorize: RequestListener = async (req, res) => {
    res.setHeader('content-type', 'application/json');
    if (req.url?.startsWith('/.well-known/oauth-authorization-server'))
      return void res.end(
        JSON.stringify({
          issuer: 'https://idp.example',
          authorization_endpoint: 'https://idp.example/authorize',
          token_endpoint: 'https://idp.example/token',
          response_types_supported: ['code'],
          grant_types_supported: ['client_credentials'],
        }),
      );
    if (req.url !== '/token') return void res.writeHead(404).end('{}');
    const asked = new URLSearchParams(await text(req));
    const scope = asked.get('scope') ?? '';
    granted.push(scope);
    const sign = { key: signing, issuer: 'https://idp.example', audience: String(asked.get('resource')) };
    const { publicJwk } = await keyPair();
    const token = await encryptToken({ sub: 'ada', scope }, publicJwk, { expiresIn: 300, sign });
    res.end(JSON.stringify({ access_token: token, token_type: 'Bearer', expires_in: 300, scope }));
  };

  before(async () => {
    const { privateKey, publicKey } = generateKeyPairSync('ed25519');
    const jwk = (key: KeyObject): object => ({
      ...key.export({ format: 'jwk' }),
      alg: 'Ed25519',
      use: 'sig',
      kid: 'i',
    });
    signing = jwk(privateKey) as PrivateSigningJwk;
    mkdirSync(join(folder, '.keys'));
    writeFileSync(join(folder, '.keys/signing-public.json'), JSON.stringify({ keys: [jwk(publicKey)] }));
    running = await Running.start({ name: 'step-up', example: 'step-up.ts', revision: sdk2 });
  });
  after(() => running?.stop());

  /** The names of the example lead to the servers of this test, as DNS and a proxy would. */
  const through =
    (issuer: string) =>
    (url: string | URL, init?: RequestInit): Promise<Response> =>
      fetch(
        String(url).replace('https://mcp.example', running.url.origin).replace('https://idp.example', issuer),
        init,
      );

  it('lets the official client step up: a token for reading, then one for writing', async (t) => {
    const { url: issuer } = await serve(t, authorize);
    const expectedIssuer = 'https://idp.example';
    const authProvider = new ClientCredentialsProvider({ clientId: 'app', clientSecret: 'secret', expectedIssuer });
    const client = new Client({ name: 'app', version: '1.0.0' }, { versionNegotiation: { mode: 'auto' } });
    const url = new URL('https://mcp.example/mcp');
    await client.connect(new StreamableHTTPClientTransport(url, { authProvider, fetch: through(issuer) }));
    const call = async (name: string): Promise<unknown> => (await client.callTool({ name, arguments: {} })).content;
    try {
      assert.deepEqual(await call('read'), [{ type: 'text', text: 'notes of ada' }]);
      assert.deepEqual(granted, ['']);
      assert.deepEqual(await call('write'), [{ type: 'text', text: 'written by ada' }]);
      assert.deepEqual(granted, ['', 'notes:write']);
      assert.deepEqual(await call('read'), [{ type: 'text', text: 'notes of ada' }]);
      assert.deepEqual(granted, ['', 'notes:write']);
    } finally {
      await client.close();
    }
  });

  it('challenges a client that cannot: 403 with the scope and the metadata of the server', async () => {
    const { publicJwk } = await keyPair();
    const sign = { key: signing, issuer: 'https://idp.example', audience: 'https://mcp.example/mcp' };
    const token = await encryptToken({ sub: 'bob', scope: 'notes:read' }, publicJwk, { sign });
    const requestInit = { headers: { authorization: `Bearer ${token}` } };
    const client = new Client({ name: 'app', version: '1.0.0' }, { versionNegotiation: { mode: 'auto' } });
    await client.connect(new StreamableHTTPClientTransport(running.url, { requestInit }));
    try {
      await assert.rejects(client.callTool({ name: 'write', arguments: {} }), (error) => {
        assert.ok(error instanceof InsufficientScopeError);
        const metadata = 'https://mcp.example/.well-known/oauth-protected-resource/mcp';
        assert.deepEqual([error.requiredScope, error.resourceMetadataUrl?.href], ['notes:write', metadata]);
        return true;
      });
    } finally {
      await client.close();
    }
  });
});
