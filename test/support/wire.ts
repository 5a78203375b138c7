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

/** The types of Node's HTTP/2 compatibility API are not those of node:http, which it stands in for. */
export function asHttp2(listener: RequestListener): (req: Http2ServerRequest, res: Http2ServerResponse) => void {
  return listener as unknown as (req: Http2ServerRequest, res: Http2ServerResponse) => void;
}
