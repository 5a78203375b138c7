// A server for the bench, in a process of its own: bench-server.js NAME. The parent gets its port, and its state when
// it asks. BENCH_LIBRARY is the URL of another build of the library.
import { AsyncLocalStorage } from 'node:async_hooks';
import { webcrypto } from 'node:crypto';
import { createServer, type RequestListener } from 'node:http';
import { availableParallelism } from 'node:os';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { requireBearerAuth } from '@modelcontextprotocol/express';
import express from 'express';
import { jwtVerify } from 'jose';
import { rsa } from '../test/support/rsa.js';

/** What a server tells of itself. Times in ms, memory in octets. */
export interface ServerState {
  rsa: number;
  /** µs of the processor's time, of all its threads, since the parent last sent `mark`. */
  cpu: number;
  /** Since then. */
  requests: number;
  heap: number;
  resident: number;
  delayP99: number;
}

/** What it is told: the server's keys, a token for it, and an issuer's secret for the SDK's verifier. */
export interface ServerInput {
  keys: string;
  token: string;
  signer: { kty: string };
}

const library = process.env['BENCH_LIBRARY'] ?? 'mcp-auth-middleware';
const { authMiddleware, getUser, JWETokenVerifier, withAuth }: typeof import('mcp-auth-middleware') = await import(
  library
);
const { keys, signer } = JSON.parse(process.env['BENCH_INPUT'] ?? '') as ServerInput;
const answer = 'hello, alice';
const storage = new AsyncLocalStorage<string>();

/** The SDK's middleware as its documentation shows it, with jose to verify a signed token. */
const sdkAuth = () =>
  requireBearerAuth({
    verifier: {
      async verifyAccessToken(token) {
        const { payload } = await jwtVerify(token, signer, { issuer: 'issuer', audience: 'audience' });
        return { token, clientId: String(payload.sub), scopes: [], expiresAt: payload.exp, extra: payload };
      },
    },
  });

/** Keeps the thread pool as busy as a flood keeps it, with the runtime's own RSA and no library. */
async function decryptForEver(): Promise<void> {
  const { subtle } = webcrypto;
  const algorithm = { name: 'RSA-OAEP', hash: 'SHA-256' };
  const { kid: _kid, iat: _iat, ...jwk } = JSON.parse(keys);
  const key = await subtle.importKey('jwk', jwk, algorithm, false, ['decrypt']);
  const garbage = new Uint8Array(512).fill(7);
  for (;;) await subtle.decrypt(algorithm, key, garbage).catch(() => {});
}

const bare: RequestListener = (_req, res) => {
  res.end(answer);
};
const servers: Record<string, () => RequestListener> = {
  bare: () => bare,
  /** As many operations as the library has lanes in this process, whose thread pool has four threads. */
  busy: () => {
    for (let lane = 0; lane < Math.min(availableParallelism() + 1, 3); lane += 1) void decryptForEver();
    return bare;
  },
  storage: () => (_req, res) => {
    storage.run('alice', () => res.end(`hello, ${storage.getStore()}`));
  },
  ours: () =>
    withAuth(
      (_req, res) => {
        res.end(`hello, ${getUser().sub}`);
      },
      { verifier: new JWETokenVerifier({ keys: JSON.parse(keys) }) },
    ),
  express: () =>
    express().get('/', (_req, res) => {
      res.end(answer);
    }),
  'express-ours': () =>
    express()
      .use(authMiddleware({ keys: JSON.parse(keys) }))
      .get('/', (_req, res) => {
        res.end(answer);
      }),
  'express-sdk': () =>
    express().get('/', sdkAuth(), (_req, res) => {
      res.end(answer);
    }),
};

const listener = servers[process.argv[2] ?? '']?.();
if (!listener) throw new Error(`one of ${Object.keys(servers).join(', ')}`);
const RESOLUTION = 1; // ms, which the histogram counts as delay
const delay = monitorEventLoopDelay({ resolution: RESOLUTION });
delay.enable();
const server = createServer(listener).listen(0, '127.0.0.1', () => process.send?.(server.address()));
server.maxRequestsPerSocket = 0;
let requests = 0;
server.on('request', () => {
  requests += 1;
});
let mark = process.cpuUsage();
process.on('message', (message) => {
  if (message === 'mark') {
    mark = process.cpuUsage();
    requests = 0;
    return;
  }
  const { user, system } = process.cpuUsage(mark);
  globalThis.gc?.();
  const { heapUsed, rss } = process.memoryUsage();
  const state: ServerState = {
    rsa: rsa.started,
    cpu: user + system,
    requests,
    heap: heapUsed,
    resident: rss,
    delayP99: Math.max(0, delay.percentile(99) / 1e6 - RESOLUTION),
  };
  delay.reset();
  process.send?.(state);
});
process.on('disconnect', () => process.exit());
