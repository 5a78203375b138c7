// What the suites over HTTP share: a guarded server, a token for it, and requests of which nothing is hidden or added.
import { type Agent, type IncomingHttpHeaders, request, type RequestListener, type Server } from 'node:http';
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { type AuthOptions, encryptToken, getUser, type JwkSet, withAuth } from 'mcp-auth-middleware';
import { keyPair, type Scope, serve } from './support.js';

/** The private set of the tests' server. */
export async function serverKeys(): Promise<JwkSet> {
  return { keys: [(await keyPair()).privateJwk] };
}

/** A token for the tests' server. */
export async function mint(claims: object, options?: Parameters<typeof encryptToken>[2]): Promise<string> {
  return encryptToken(claims, (await keyPair()).publicJwk, options);
}

export async function bearer(claims: object): Promise<{ authorization: string }> {
  return { authorization: `Bearer ${await mint(claims)}` };
}

/** Answers with the claims of whoever asks. */
export const whoami: RequestListener = (_req, res) => {
  res.setHeader('content-type', 'application/json').end(JSON.stringify(getUser()));
};

/** A server behind withAuth, with the tests' keys unless the options bring others. */
export async function guard(
  scope: Scope,
  options: AuthOptions = {},
  handler = whoami,
): Promise<{ server: Server; port: number; url: string }> {
  const own = options.verifier || options.keyFile ? {} : { keys: await serverKeys() };
  return serve(scope, withAuth(handler, { ...own, ...options }));
}

export interface Ask {
  method?: string;
  path?: string;
  headers?: Record<string, string | string[]>;
  body?: string;
  agent?: Agent;
}

export interface Answer {
  status: number;
  /** Without what every answer has of Node itself: date, connection, keep-alive, transfer-encoding. */
  headers: IncomingHttpHeaders;
  body: string;
}

/** One request, on a connection of its own unless an agent is given. */
export function ask(
  port: number,
  { method = 'GET', path = '/mcp', headers = {}, body, agent }: Ask = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const req = request({ host: '127.0.0.1', port, method, path, headers, agent: agent ?? false, timeout: 20_000 });
    req.on('timeout', () => req.destroy(new Error('no answer')));
    req.on('error', reject);
    req.on('response', (res) => {
      const { date: _d, connection: _c, 'keep-alive': _k, 'transfer-encoding': _t, ...rest } = res.headers;
      text(res).then((answer) => resolve({ status: res.statusCode ?? 0, headers: rest, body: answer }), reject);
    });
    req.end(body);
  });
}

/** Sends octets as they are and returns all that comes back until the server closes: ask for `Connection: close`. */
export function exchange(port: number, octets: string | Buffer): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1');
    const chunks: Buffer[] = [];
    socket.setTimeout(20_000, () => socket.destroy(new Error('the server keeps the connection')));
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    socket.on('error', reject);
    socket.on('close', () => resolve(Buffer.concat(chunks).toString('latin1')));
    socket.write(typeof octets === 'string' ? Buffer.from(octets, 'latin1') : octets);
  });
}

/**
 * One GET in HTTP/2 frames of our own (RFC 9113 §4.1), for Node's client sends no field twice. Its authority is
 * localhost unless the fields bring `:authority` or `host`.
 * Returns the body of the answer.
 */
export function exchangeHttp2(port: number, fields: [name: string, value: string][]): Promise<string> {
  const frame = (type: number, flags: number, stream: number, payload: Buffer): Buffer => {
    const head = Buffer.alloc(9);
    head.writeUIntBE(payload.length, 0, 3);
    head.writeUInt8(type, 3);
    head.writeUInt8(flags, 4);
    head.writeUInt32BE(stream, 5);
    return Buffer.concat([head, payload]);
  };
  // RFC 7541 §6.2.2 and §5.1: a literal without indexing, its lengths with a prefix of 7 bits.
  const literal = (text: string): Buffer => {
    const octets = Buffer.from(text, 'latin1');
    const length = octets.length < 127 ? [octets.length] : [127];
    for (let rest = octets.length - 127; rest >= 0; rest = rest < 128 ? -1 : rest >> 7)
      length.push(rest < 128 ? rest : (rest & 127) | 128);
    return Buffer.concat([Buffer.from(length), octets]);
  };
  const named = fields.some(([name]) => name === 'host' || name === ':authority');
  const authority: typeof fields = named ? [] : [[':authority', 'localhost']];
  const given: typeof fields = [[':method', 'GET'], [':scheme', 'http'], [':path', '/'], ...authority, ...fields];
  // Pseudo-header fields come before all others (RFC 9113 §8.3).
  const all = given.toSorted(([a], [b]) => Number(b.startsWith(':')) - Number(a.startsWith(':')));
  const block = Buffer.concat(all.flatMap(([name, value]) => [Buffer.of(0), literal(name), literal(value)]));
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1');
    let received = Buffer.alloc(0);
    let body = '';
    socket.setTimeout(20_000, () => socket.destroy(new Error('no answer')));
    socket.on('error', reject);
    socket.on('close', () => reject(new Error('closed before the answer ended')));
    socket.on('data', (chunk: Buffer) => {
      received = Buffer.concat([received, chunk]);
      while (received.length >= 9 && received.length >= 9 + received.readUIntBE(0, 3)) {
        const end = 9 + received.readUIntBE(0, 3);
        const [type, flags, stream] = [received.readUInt8(3), received.readUInt8(4), received.readUInt32BE(5)];
        if (type === 0) body += received.toString('latin1', 9, end);
        if (type === 4 && (flags & 1) === 0) socket.write(frame(4, 1, 0, Buffer.alloc(0))); // acknowledges SETTINGS
        if (stream === 1 && (type === 0 || type === 1) && (flags & 1) === 1) {
          resolve(body);
          socket.destroy();
        }
        received = received.subarray(end);
      }
    });
    socket.write(
      Buffer.concat([
        Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'),
        frame(4, 0, 0, Buffer.alloc(0)),
        frame(1, 5, 1, block),
      ]),
    );
  });
}

/** The types of Node's HTTP/2 compatibility API are not those of node:http, which it stands in for. */
export function asHttp2(listener: RequestListener): (req: Http2ServerRequest, res: Http2ServerResponse) => void {
  return listener as unknown as (req: Http2ServerRequest, res: Http2ServerResponse) => void;
}
