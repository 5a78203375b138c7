// The law of the socket: whatever bytes come in, the handler runs for verified users alone, each in that one's context.
import fc from 'fast-check';
import { encryptToken, getAuth, getUser, withAuth } from 'mcp-auth-middleware';
import assert from 'node:assert/strict';
import type { IncomingMessage } from 'node:http';
import { connect, type Socket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { type Law, law } from './laws.ts';
import { keyPair, type Scope, serve } from '../support/support.ts';

/** Hosts of this server on loopback (an IP literal, localhost and what is below it), and others. */
const HOSTS = {
  own: [
    'localhost',
    'LocalHost:81',
    'localhost.',
    'a.localhost',
    '127.0.0.1',
    '10.1.2.3:443',
    '[::1]:8080',
    '[fe80::1]',
    '',
  ],
  foreign: [
    'a',
    'evil.example',
    'evil.example:80',
    'localhost.evil.example',
    'xlocalhost',
    'local',
    '127.0.0.1.nip.example',
  ],
};
/** Origins that are of this very server, by the Host beside which they are. */
const OWN_ORIGINS: Record<string, string[]> = {
  'http://localhost': ['localhost'],
  'https://localhost': ['localhost'],
  'http://localhost:81': ['LocalHost:81'],
  'https://10.1.2.3': ['10.1.2.3:443'],
  'http://[::1]:8080': ['[::1]:8080'],
  'https://127.0.0.1': ['127.0.0.1'],
  'http://evil.example': [], // although that is what Host says
  'http://LOCALHOST': [],
  'http://localhost/': [],
};

interface Field {
  name: string;
  separator: string;
  value: string;
}
interface Message {
  method: string;
  target: string;
  version: string;
  fields: Field[];
  eol: string;
  body: string;
}

const print = ({ method, target, version, fields, eol, body }: Message): string => {
  const lines = fields.map(({ name, separator, value }) => name + separator + value + eol);
  return `${method} ${target} ${version}${eol}${lines.join('')}${eol}${body}`;
};

/** Requests a client might send, and what a smuggler would. `tokens`: valid ones first. */
function messages(valid: string[], bad: string[]): fc.Arbitrary<{ first: Message; rest: Message[] }> {
  const [alice = '', bob = ''] = valid;
  const token = fc.oneof(
    { weight: 5, arbitrary: fc.constantFrom(...valid) },
    { weight: 3, arbitrary: fc.constantFrom(...bad) },
    {
      weight: 2,
      arbitrary: fc.constantFrom(
        `${alice}=`,
        `${alice} `,
        `${alice},`,
        `${alice} ${bob}`,
        `${alice},${bob}`,
        `${alice}\0`,
        `"${alice}"`,
        `${alice};q=1`,
        alice.slice(1),
        `${alice}\r\n x`,
        '',
        'null',
        '...',
        'x'.repeat(9000),
      ),
    },
  );
  const scheme = fc.oneof(
    { weight: 6, arbitrary: fc.constantFrom('Bearer ', 'bearer ', 'BEARER   ') },
    {
      weight: 2,
      arbitrary: fc.constantFrom(
        'Bearer\t',
        'Bearer',
        'Basic ',
        'Bearer,',
        'Bearer: ',
        'DPoP ',
        '',
        'Bearer Bearer ',
        'Bearerx ',
        'Bearer=',
      ),
    },
  );
  const separator = fc.oneof(
    { weight: 40, arbitrary: fc.constantFrom(': ', ':', ': \t') },
    { weight: 1, arbitrary: fc.constantFrom(' : ', '\t: ', ':\r\n ', ':\n', '\0: ', '', ':\x0b') },
  );
  const authorization = fc.record({
    name: fc.oneof(
      { weight: 20, arbitrary: fc.constantFrom('Authorization', 'authorization', 'AUTHORIZATION') },
      {
        weight: 2,
        arbitrary: fc.constantFrom(
          'X-Authorization',
          'Proxy-Authorization',
          ' Authorization',
          'Authorization_',
          'authorisation',
          'Authorizat\u0131on',
          '\tAuthorization',
          'Cookie',
        ),
      },
    ),
    separator,
    value: fc.tuple(scheme, token).map((parts) => parts.join('')),
  });
  const plain = (name: string, ...values: string[]): fc.Arbitrary<Field> =>
    fc.record({ name: fc.constant(name), separator, value: fc.constantFrom(...values) });
  const other = fc.oneof(
    plain('Content-Length', '0', '5', '70', '-1', '+5', '0x5', '5, 5', ' 5', '99999999999999999999'),
    plain(
      'Transfer-Encoding',
      'chunked',
      'Chunked',
      'identity',
      'chunked, chunked',
      'gzip, chunked',
      'xchunked',
      '\x0bchunked',
    ),
    plain('Connection', 'close', 'keep-alive', 'authorization', 'upgrade', 'upgrade, authorization'),
    plain('Upgrade', 'websocket', 'h2c'),
    plain('Expect', '100-continue', '200-ok'),
    plain('Origin', 'null', 'https://evil.example', '', ...Object.keys(OWN_ORIGINS)),
    plain('Host', ...HOSTS.own, ...HOSTS.foreign),
    plain('X-Forwarded-Uri', '/health', '/.well-known/jwks.json'),
    plain('X-HTTP-Method-Override', 'OPTIONS'),
    plain('Access-Control-Request-Method', 'GET'),
    {
      weight: 2,
      arbitrary: plain('Mcp-Session-Id', 's', 's2', 's3', 's4', '', 's s2', 's,s2', 's\xa0', '\xa0', 's\te'),
    },
    fc.record({
      name: fc.string({ unit: 'binary', maxLength: 8 }),
      separator,
      value: fc.string({ unit: 'binary', maxLength: 30 }),
    }),
  );
  const method = fc.oneof(
    { weight: 15, arbitrary: fc.constantFrom('GET', 'POST', 'DELETE', 'HEAD', 'OPTIONS', 'PUT') },
    { weight: 1, arbitrary: fc.constantFrom('get', 'BREW', 'CONNECT', 'PRI', 'M-SEARCH', '\nGET', '\u00a0GET', '') },
  );
  const target = fc.oneof(
    { weight: 5, arbitrary: fc.constantFrom('/mcp', '/', '/mcp?access_token=x') },
    {
      weight: 5,
      arbitrary: fc.constantFrom(
        '/health',
        '/health?x',
        '//health',
        '/health/',
        '/./health',
        '/HEALTH',
        '/%68ealth',
        '/health%00',
        '/health;x',
        '/health#x',
        '/mcp?/health',
        '/mcp/../health',
        'http://a/health',
        'http://a',
        '*',
        '?/health',
        '\\health',
        '/health\t',
      ),
    },
    {
      weight: 3,
      arbitrary: fc.constantFrom(
        '/.well-known/jwks.json',
        '/.well-known//jwks.json',
        '/x/../.well-known/jwks.json',
        '/.well-known/jwks.json/',
        '/.well-known/jwks%2ejson',
        'http://a/.well-known/jwks.json',
        '/.well-known/oauth-protected-resource',
      ),
    },
    { weight: 1, arbitrary: fc.string({ maxLength: 12 }).map((text) => `/${text}`) },
  );
  const body = fc.oneof(
    { weight: 12, arbitrary: fc.constant('') },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        '{"a"}',
        '0\r\n\r\n',
        '5\r\nhello\r\n0\r\n\r\n',
        `GET /mcp HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${alice}\r\n\r\n`,
        `0\r\n\r\nGET /mcp HTTP/1.1\r\nHost: a\r\n\r\n`,
        '0\r\nAuthorization: Bearer x\r\n\r\n',
      ),
    },
  );
  const host = { name: 'Host', separator: ': ', value: 'localhost' };
  const named = plain('Host', ...HOSTS.own, ...HOSTS.foreign).map((field) => ({ ...field, separator: ': ' }));
  const odd = fc.record({
    method,
    target,
    body,
    version: fc.oneof(
      { weight: 25, arbitrary: fc.constant('HTTP/1.1') },
      { weight: 1, arbitrary: fc.constantFrom('HTTP/1.0', 'HTTP/2.0', 'HTTP/0.9', 'http/1.1', 'HTTP/1.1 ', '') },
    ),
    fields: fc
      .tuple(
        fc.oneof(
          { weight: 6, arbitrary: fc.constantFrom([host], [host], [host], []) },
          { weight: 2, arbitrary: named.map((field) => [field]) },
        ),
        fc.array(fc.oneof({ weight: 2, arbitrary: authorization }, { weight: 1, arbitrary: other }), { maxLength: 4 }),
      )
      .map(([some, more]) => [...some, ...more]),
    eol: fc.oneof(
      { weight: 40, arbitrary: fc.constant('\r\n') },
      { weight: 1, arbitrary: fc.constantFrom('\n', '\r', '\r\r\n', '\n\r') },
    ),
  });
  const clean = fc.record({
    method: fc.constantFrom('GET', 'PUT', 'DELETE'),
    target: fc.constantFrom('/mcp', '/health', '/.well-known/jwks.json'),
    version: fc.constant('HTTP/1.1'),
    eol: fc.constant('\r\n'),
    body: fc.constant(''),
    fields: fc
      .option(fc.constantFrom(...valid, ...bad))
      .map((text) =>
        text === null ? [host] : [host, { name: 'Authorization', separator: ': ', value: `Bearer ${text}` }],
      ),
  });
  return fc.record({
    first: clean,
    rest: fc.array(fc.oneof({ weight: 4, arbitrary: odd }, { weight: 1, arbitrary: clean }), {
      minLength: 1,
      maxLength: 3,
    }),
  });
}

/** What the contract says of a request as Node read it: the status, and whose the handler may be (null: nobody's). */
interface Expected {
  status: number;
  user?: string | null;
  /** The session that is used, which may turn out to be another's: then it is 404, and the handler does not run. */
  session?: string;
}

function contract({ method, url = '', rawHeaders }: IncomingMessage, users: Map<string, string>): Expected {
  const values = (wanted: string): string[] =>
    rawHeaders.flatMap((name, at) => (at % 2 === 0 && name.toLowerCase() === wanted ? (rawHeaders[at + 1] ?? '') : []));
  const [path] = url.split('?');
  if (path === '/.well-known/jwks.json')
    return { status: method === 'GET' || method === 'HEAD' ? 200 : method === 'OPTIONS' ? 204 : 405 };
  const [hosts, origins] = [values('host'), values('origin')];
  if (hosts.length > 1 || origins.length > 1) return { status: 400 };
  const [host = '', origin] = [hosts[0], origins[0]];
  if (host !== '' && !HOSTS.own.includes(host)) return { status: 403 };
  if (origin !== undefined && !OWN_ORIGINS[origin]?.includes(host)) return { status: 403 };
  if (path === '/health') return { status: 200, user: null };
  const tokens = values('authorization');
  if (tokens.length > 1) return { status: 400 };
  const user = users.get(/^bearer +(.*)$/is.exec(tokens[0] ?? '')?.[1] ?? '');
  if (user === undefined) return { status: 401 };
  const [session, ...more] = values('mcp-session-id');
  if (more.length > 0) return { status: 400 };
  if (session === undefined || session === '') return { status: 200, user };
  return /[^\x21-\x7e]/.test(session) ? { status: 400 } : { status: 200, user, session };
}

interface Exchange {
  seen: number;
  finished: number;
  problems: string[];
}

export async function httpLaws(scope: Scope): Promise<Law[]> {
  const [{ privateJwk, publicJwk }, { publicJwk: foreign }] = await Promise.all([keyPair(), keyPair('other')]);
  const past = Math.floor(Date.now() / 1000) - 3600;
  // With a subject and without one: then a session belongs to all the claims, of which two are objects.
  const valid = await Promise.all(
    [
      { who: 'alice', sub: 'a' },
      { who: 'bob', one: { n: [{}] }, two: { n: null } },
    ].map((claims) => encryptToken(claims, publicJwk, { expiresIn: 1e6 })),
  );
  const users = new Map(valid.map((token, n) => [token, n ? 'bob' : 'alice']));
  const [alice = ''] = valid;
  const expired = await encryptToken({ sub: 'alice', iat: past, exp: past + 60 }, publicJwk);
  const bad = [
    expired,
    await encryptToken({ sub: 'alice' }, foreign),
    `${alice.slice(0, -1)}${alice.endsWith('A') ? 'Q' : 'A'}`,
    alice.replace('.', '.A'),
    'garbage',
  ];

  const exchanges = new WeakMap<Socket, Exchange>();
  const exchangeOf = ({ socket }: IncomingMessage): Exchange =>
    exchanges.get(socket) ?? assert.fail('a request on an unknown connection');
  const ran = new WeakMap<IncomingMessage, string | null>();
  /** Whose requests reached the handler in a session. */
  const members = new Map<string, string>();
  let sessions = 0;
  const gate = withAuth(
    async (req, res) => {
      const { problems } = exchangeOf(req);
      const { user: expected, session } = contract(req, users);
      const look = (when: string): void => {
        const user = getUser<{ who?: string }>().who ?? null;
        if (expected === undefined || user !== expected)
          problems.push(`${when}: the handler ran for ${user} instead of ${expected}: ${req.method} ${req.url}`);
        if (user !== null && users.get(getAuth()?.token ?? '') !== user) problems.push(`${when}: another's token`);
        if ((Reflect.get(req, 'auth')?.extra.who ?? null) !== user) problems.push(`${when}: another's req.auth`);
      };
      ran.set(req, getUser<{ who?: string }>().who ?? null);
      look('at once');
      if (session !== undefined) {
        const owner = members.get(session) ?? expected;
        if (owner !== expected) problems.push(`${expected} is in the session ${session} of ${owner}`);
        members.set(session, String(expected));
      }
      req.on('data', () => look('in data'));
      res.on('finish', () => look('in finish'));
      await turn();
      look('a turn later');
      res.setHeader('Mcp-Session-Id', `opened-${(sessions += 1) % 50}`); // too few to push out the others
      res.end('hello');
    },
    { keys: privateJwk, publicPaths: ['/health'], clockTolerance: 0 },
  );

  const { server, port } = await serve(scope, (req, res) => {
    const exchange = exchangeOf(req);
    exchange.seen += 1;
    res.once('close', () => {
      exchange.finished += 1;
      const expected = contract(req, users);
      const handled = ran.get(req);
      const isForeign = expected.session !== undefined && res.statusCode === 404 && handled === undefined;
      const { status, user } = isForeign ? { status: 404 } : { user: undefined, ...expected };
      if (!res.writableFinished) return; // the connection went before
      if (res.statusCode !== status || handled !== user)
        exchange.problems.push(
          `${req.method} ${req.url}: ${res.statusCode} instead of ${status}, handler for ${handled} instead of ${user}`,
        );
    });
    gate(req, res);
    if (getUser<{ who?: string }>().who !== undefined || getAuth() !== undefined)
      exchange.problems.push('the context leaks out of the handler');
  });
  const sockets = new Map<number | undefined, Socket>();
  server.on('connection', (socket) => {
    const { remotePort } = socket;
    sockets.set(remotePort, socket);
    socket.once('close', () => sockets.get(remotePort) === socket && sockets.delete(remotePort));
  });

  /**
   * Sends one part after the other, each when the server has read the last and answered what it took for requests.
   * No clock is involved.
   */
  const exchange = async (parts: string[]): Promise<Exchange & { received: string[] }> => {
    const result: Exchange & { received: string[] } = {
      seen: 0,
      finished: 0,
      problems: [],
      received: parts.map(() => ''),
    };
    const client = connect(port, '127.0.0.1').setNoDelay();
    let current = 0;
    client
      .setEncoding('latin1')
      .on('data', (chunk) => {
        result.received[current] += String(chunk);
      })
      .on('error', () => {}); // a reset: the server would read no more
    await new Promise((resolve) => client.once('connect', resolve));
    while (!sockets.has(client.localPort)) await turn();
    const socket = sockets.get(client.localPort) ?? assert.fail();
    exchanges.set(socket, result);
    let sent = 0;
    for (const [index, part] of parts.entries()) {
      current = index;
      sent += part.length;
      client.write(part, 'latin1');
      while (
        !client.destroyed &&
        !(socket.bytesRead >= sent && result.finished === result.seen && client.bytesRead === socket.bytesWritten)
      )
        await turn();
    }
    client.destroy();
    while (!socket.destroyed) await turn();
    await turn(); // for what the handlers still do; Node closes no pipelined answer that had to wait
    await turn();
    return result;
  };

  return [
    law(
      'over a socket the handler runs for verified users alone',
      190,
      messages(valid, bad),
      async ({ first, rest }) => {
        const { problems, received } = await exchange([print(first), rest.map(print).join('')]);
        assert.deepEqual(problems, []);
        assert.match(received[0] ?? '', /^HTTP\/1\.1 (200|401|405) /); // well-formed, so it was understood
        for (const [head] of received.join('').matchAll(/HTTP\/1\.[01] \d\d\d [^]*?\r\n\r\n/g))
          assert.doesNotMatch(head, /^\S+ 5/);
      },
    ),
  ];
}
