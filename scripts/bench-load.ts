// Load for the bench's servers, from a process of its own: bench-load.js JSON. Prints the figures as JSON.
import { randomBytes } from 'node:crypto';
import { createHistogram } from 'node:perf_hooks';
import autocannon from 'autocannon';
import { Pool } from 'undici';

export interface Load {
  url: string;
  /** s; with a rate, p99 leaves out the first. */
  duration: number;
  connections: number;
  /** Requests/s, evenly spread; as many as it gets without it. */
  rate?: number;
  token: string;
  /** Send a forged token each time: the given one's header, right lengths and random octets. */
  forged?: boolean;
}

export interface LoadResult {
  perSecond: number;
  p99: number;
  ok: number;
  refused: Record<string, number>;
  errors: number;
}

function forge(token: string): string {
  const [header, encryptedKey = ''] = token.split('.');
  const octets = randomBytes(Buffer.from(encryptedKey, 'base64url').length);
  octets[0] = 0x7f & Number(octets[0]); // below the modulus, or no operation would be needed to refuse it
  return [
    header,
    ...[octets, randomBytes(12), randomBytes(100), randomBytes(16)].map((part) => part.toString('base64url')),
  ].join('.');
}

async function saturate({ url, duration, connections, token }: Load): Promise<LoadResult> {
  const result = await autocannon({ url, duration, connections, headers: { authorization: `Bearer ${token}` } });
  const { statusCodeStats = {} } = result as { statusCodeStats?: Record<string, { count: number }> };
  const { 200: ok = 0, ...refused } = Object.fromEntries(
    Object.entries(statusCodeStats).map(([status, { count }]) => [status, count]),
  );
  return {
    perSecond: result.requests.average,
    p99: result.latency.p99,
    ok,
    refused,
    errors: result.errors + result.timeouts,
  };
}

// In these ms the client connects and its own code is compiled, which would be the slowest percent of all.
const WARM_UP = 1000;

/** autocannon sends a second's requests at once; this one paces them. A request is timed from when it was due. */
async function pace({ url, duration, connections, rate = 1, token, forged = false }: Load): Promise<LoadResult> {
  const pool = new Pool(new URL(url).origin, { connections });
  const bearer = (): string => `Bearer ${forged ? forge(token) : token}`;
  const latency = createHistogram();
  const statuses = new Map<number, number>();
  const pending = new Set<Promise<void>>();
  let errors = 0;
  const start = performance.now();
  const send = async (due: number): Promise<void> => {
    try {
      const headers = { authorization: bearer() };
      const { statusCode, body } = await pool.request({ method: 'GET', path: '/', headers });
      await body.dump();
      statuses.set(statusCode, (statuses.get(statusCode) ?? 0) + 1);
      if (due - start >= WARM_UP) latency.record(Math.max(1, Math.round((performance.now() - due) * 1000)));
    } catch {
      errors += 1;
    }
  };
  let sent = 0;
  await new Promise<void>((resolve) => {
    const timer = setInterval(() => {
      for (; sent < duration * rate && start + (sent * 1000) / rate <= performance.now(); sent += 1) {
        const one = send(start + (sent * 1000) / rate).finally(() => pending.delete(one));
        pending.add(one);
      }
      if (sent < duration * rate) return;
      clearInterval(timer);
      resolve();
    }, 1);
  });
  await Promise.all(pending);
  const seconds = (performance.now() - start) / 1000;
  await pool.close();
  const { 200: ok = 0, ...refused } = Object.fromEntries(statuses);
  return { perSecond: (sent - errors) / seconds, p99: latency.percentile(99) / 1000, ok, refused, errors };
}

const load = JSON.parse(process.argv[2] ?? '') as Load;
process.stdout.write(JSON.stringify(await (load.rate === undefined ? saturate(load) : pace(load))));
