// Load for the bench's servers, from a process of its own, by autocannon: bench-load.js JSON. Prints the figures as JSON.
import { randomBytes } from 'node:crypto';
import autocannon, { type Request } from 'autocannon';

export interface Load {
  url: string;
  /** s */
  duration: number;
  connections: number;
  /** Requests/s, over all connections; as many as it gets without it. */
  rate?: number;
  token: string;
  /** Send a forged token each time: the given one's header, right lengths and random octets. */
  forged?: boolean;
}

export interface LoadResult { perSecond: number; p50: number; p99: number; ok: number; refused: Record<string, number>; errors: number }

function forge(token: string): string {
  const [header, encryptedKey = ''] = token.split('.');
  const octets = randomBytes(Buffer.from(encryptedKey, 'base64url').length);
  octets[0] = 0x7f & Number(octets[0]); // below the modulus, or no operation would be needed to refuse it
  return [header, ...[octets, randomBytes(12), randomBytes(100), randomBytes(16)].map((part) => part.toString('base64url'))].join('.');
}

const { url, duration, connections, rate, token, forged = false } = JSON.parse(process.argv[2] ?? '') as Load;
const forgeRequest = (request: Request): Request => ({ ...request, headers: { authorization: `Bearer ${forge(token)}` } });
const result = await autocannon({
  url, duration, connections, ...(rate !== undefined && { overallRate: rate }),
  ...(forged ? { requests: [{ setupRequest: forgeRequest }] } : { headers: { authorization: `Bearer ${token}` } }),
});
const { statusCodeStats = {} } = result as { statusCodeStats?: Record<string, { count: number }> };
const { 200: ok, ...refused } = Object.fromEntries(Object.entries(statusCodeStats).map(([status, { count }]) => [status, count]));
const figures: LoadResult = {
  perSecond: result.requests.average, p50: result.latency.p50, p99: result.latency.p99, ok: ok ?? 0, refused, errors: result.errors + result.timeouts,
};
process.stdout.write(JSON.stringify(figures));
