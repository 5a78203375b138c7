// The other servers Node has, with the same listener: https and HTTP/2; and the events that no listener of requests ever sees.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { RequestListener } from 'node:http';
import {
  type ClientHttp2Session,
  connect,
  createSecureServer,
  createServer,
  type IncomingHttpHeaders,
} from 'node:http2';
import { createServer as createHttpsServer, request } from 'node:https';
import { type AddressInfo, type Server } from 'node:net';
import { text } from 'node:stream/consumers';
import { describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { AuthError, type AuthOptions, getUser, JWETokenVerifier, withAuth } from 'mcp-auth-middleware';
import type { Scope } from './support/support.js';
import { asHttp2, ask, bearer, exchange, guard, mint, serverKeys } from './support/wire.js';

// TLS with a key both sides have (RFC 4279): it needs no certificate.
const psk = Buffer.alloc(32, 7);
const tls = { ciphers: 'PSK', minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' } as const;
const serverTls = { ...tls, pskIdentityHint: 'test', pskCallback: () => psk };
const clientTls = { ...tls, pskCallback: () => ({ psk, identity: 'test' }), checkServerIdentity: () => undefined };

async function listen(scope: Scope, server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  scope.after(() => server.close());
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

async function session(scope: Scope, origin: string): Promise<ClientHttp2Session> {
  const client = connect(origin, origin.startsWith('https') ? clientTls : {});
  scope.after(() => client.destroy());
  await once(client, 'connect');
  return client;
}

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}
async function fetchOver(
  client: ClientHttp2Session,
  headers: Record<string, string> = {},
  body?: string,
): Promise<Answer> {
  const stream = client.request(
    { ':path': '/mcp', ...(body !== undefined && { ':method': 'POST' }), ...headers },
    { endStream: body === undefined },
  );
  const answered = once(stream, 'response');
  if (body !== undefined) {
    stream.write(body.slice(0, 1));
    await delay(2);
    stream.end(body.slice(1));
  }
  const [{ ':status': status, date: _date, ...rest }] = await answered;
  return { status: Number(status), headers: Object.fromEntries(Object.entries(rest)), body: await text(stream) }; // and no symbol of Node's
}

/** Who asks, at every moment of a request. */
const everywhere: RequestListener = async (req, res) => {
  const seen: unknown[] = [getUser().sub ?? 'nobody'];
  const look = (): void => {
    seen.push(getUser().sub ?? 'nobody');
  };
  res.on('finish', look).on('close', () => {
    look();
    finished.push(new Set(seen).size);
  });
  const read = once(req.on('data', look).on('end', look), 'end');
  await delay(Math.random() * 5);
  look();
  await read;
  setTimeout(() => {
    look();
    res.setHeader('content-type', 'application/json');
    res.end(JSON.stringify([...new Set(seen)]));
  }, 1);
};
const finished: number[] = [];

describe('over HTTP/2', () => {
  for (const scheme of ['http', 'https'] as const) {
    const start = async (
      t: Scope,
      handler: RequestListener,
      options: AuthOptions = {},
    ): Promise<ClientHttp2Session> => {
      const listener = asHttp2(withAuth(handler, { keys: await serverKeys(), ...options }));
      const port = await listen(
        t,
        scheme === 'http' ? createServer(listener) : createSecureServer(serverTls, listener),
      );
      return session(t, `${scheme}://127.0.0.1:${port}`);
    };

    it(`(${scheme}) requests get the same answers as over HTTP/1`, async (t) => {
      const options: AuthOptions = {
        resource: 'https://mcp.example/mcp',
        cors: { origin: ['https://app.example'] },
        requiredClaims: ['email'],
        publicPaths: ['/open'],
      };
      const handler: RequestListener = (_req, res) => {
        res.setHeader('content-type', 'text/plain');
        res.end(String(getUser()['email']));
      };
      const client = await start(t, handler, options);
      const { port } = await guard(t, options, handler);
      const rows: Record<string, string>[] = [
        {},
        { authorization: 'Bearer x' },
        await bearer({ email: 'e' }),
        await bearer({}),
        { origin: 'https://evil.example' },
        { ':path': '/open' },
        { ':path': '/open/' },
        { ':path': '/.well-known/jwks.json' },
        { ':path': '/.well-known/jwks.json', ':method': 'HEAD' },
        { ':path': '/.well-known/jwks.json', ':method': 'OPTIONS' },
        { ':path': '/.well-known/jwks.json', ':method': 'DELETE' },
        { ':path': '/.well-known/oauth-protected-resource' },
        { ':path': '//.well-known/jwks.json' },
        { ':method': 'HEAD' },
        { ':method': 'OPTIONS', origin: 'https://app.example', 'access-control-request-method': 'POST' },
        { origin: 'https://app.example' },
      ];
      for (const headers of rows) {
        const { ':path': path = '/mcp', ':method': method = 'GET', ...fields } = headers;
        const [over2, over1] = [await fetchOver(client, headers), await ask(port, { path, method, headers: fields })];
        // How long a body is that the handler sends is Node's affair, and HTTP/2 needs no length.
        for (const answer of [over1, over2])
          if (answer.status === 200 && answer.headers['content-type'] === 'text/plain')
            delete answer.headers['content-length'];
        assert.deepEqual(over2, over1, JSON.stringify(headers));
      }
    });

    it(`(${scheme}) streams of many users on one connection are kept apart, in all their events`, async (t) => {
      const client = await start(t, everywhere, { anonymous: true });
      const users = [
        ...(await Promise.all(
          Array.from(
            { length: 10 },
            async (_, index) => [`user ${index}`, await bearer({ sub: `user ${index}` })] as const,
          ),
        )),
        ['nobody', {}] as const,
      ];
      const asked = Array.from({ length: 80 }, (_, index) => users[(index * 4) % 11] ?? assert.fail());
      finished.length = 0;
      const answers = await Promise.all(asked.map(([, headers]) => fetchOver(client, { ...headers }, 'body')));
      assert.deepEqual(
        answers.map(({ body }) => JSON.parse(body)),
        asked.map(([sub]) => [sub]),
      );
      for (let waited = 0; finished.length < 80 && waited < 2000; waited += 5) await delay(5);
      assert.deepEqual(finished, Array(80).fill(1));
    });

    it(`(${scheme}) sessions are bound, whichever way the answer is begun`, async (t) => {
      const ways: Record<string, (res: Parameters<RequestListener>[1], id: string) => void> = {
        end: (res, id) => {
          res.setHeader('mcp-session-id', id);
          res.end();
        },
        write: (res, id) => {
          res.setHeader('mcp-session-id', id);
          res.write('x');
          res.end();
        },
        flush: (res, id) => {
          res.setHeader('mcp-session-id', id);
          res.flushHeaders();
          res.end();
        },
        object: (res, id) => {
          res.writeHead(200, { 'Mcp-Session-Id': id });
          res.end();
        },
      };
      const client = await start(t, (req, res) => {
        const way = String(req.headers['x-way']);
        if (ways[way]) ways[way](res, way);
        else res.end();
      });
      const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
      for (const way of Object.keys(ways)) {
        assert.equal((await fetchOver(client, { ...ada, 'x-way': way })).headers['mcp-session-id'], way);
        assert.deepEqual(
          [
            (await fetchOver(client, { ...ada, 'mcp-session-id': way })).status,
            (await fetchOver(client, { ...bob, 'mcp-session-id': way })).status,
          ],
          [200, 404],
          way,
        );
      }
    });

    it(`(${scheme}) a stream that is reset while its token is decrypted never reaches the handler`, async (t) => {
      const reached: unknown[] = [];
      const client = await start(
        t,
        (_req, res) => {
          reached.push(getUser().sub);
          res.end();
        },
        { concurrency: 1 },
      );
      // Reset in the packet that asks: the server knows before the first of the decryptions is done.
      const gone = await Promise.all(Array.from({ length: 5 }, () => bearer({ sub: 'gone' })));
      for (const headers of gone)
        client
          .request({ ':path': '/', ...headers })
          .on('error', () => {})
          .close(8);
      assert.equal((await fetchOver(client, await bearer({ sub: 'here' }))).status, 200);
      await delay(20);
      assert.deepEqual(reached, ['here']);
    });
  }

  it('a server for both versions serves both', async (t) => {
    const listener = asHttp2(
      withAuth(
        (req, res) => {
          res.end(`${req.httpVersion} ${getUser().sub}`);
        },
        { keys: await serverKeys() },
      ),
    );
    const port = await listen(t, createSecureServer({ ...serverTls, allowHTTP1: true }, listener));
    const headers = await bearer({ sub: 'ada' });
    const client = await session(t, `https://127.0.0.1:${port}`);
    assert.equal((await fetchOver(client, headers)).body, '2.0 ada');
    const [res] = await once(
      request({ port, host: '127.0.0.1', agent: false, ...clientTls, headers }).end(),
      'response',
    );
    assert.equal(await text(res), '1.1 ada');
  });
});

describe('over https', () => {
  it('requests get the same answers, in the user’s context', async (t) => {
    const port = await listen(t, createHttpsServer(serverTls, withAuth(everywhere, { keys: await serverKeys() })));
    const send = async (
      method: string,
      path: string,
      headers: Record<string, string> = {},
    ): Promise<[number | undefined, string]> => {
      const [res] = await once(
        request({ port, host: '127.0.0.1', method, path, agent: false, ...clientTls, headers }).end('body'),
        'response',
      );
      return [res.statusCode, await text(res)];
    };
    assert.deepEqual(await send('POST', '/mcp', await bearer({ sub: 'ada' })), [200, '["ada"]']);
    assert.equal((await send('POST', '/mcp'))[0], 401);
    assert.equal((await send('GET', '/.well-known/jwks.json'))[0], 200);
  });
});

describe('what a listener of requests never sees', () => {
  const upgrade = (fields: string): string =>
    `GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${fields}\r\n`;

  it('an upgrade, which a handler of its own authenticates with the same verifier', async (t) => {
    let requests = 0;
    const verifier = new JWETokenVerifier({ keys: await serverKeys() });
    const { server, port } = await guard(t, { verifier }, (_req, res) => {
      requests += 1;
      res.end();
    });
    server.on('upgrade', async (req, socket) => {
      const token = /^Bearer ([^ ]+)$/i.exec(req.headers.authorization ?? '')?.[1] ?? '';
      const answer = await verifier.authenticate(token).then(
        ({ user, token: received }) => `101 ${user.sub} ${received === token} ${getUser().sub}`,
        (error: unknown) => (error instanceof AuthError ? `${error.status}` : '500'),
      );
      socket.end(`HTTP/1.1 ${answer}\r\n\r\n`);
    });
    const token = await mint({ sub: 'ada' });
    assert.equal(
      await exchange(port, upgrade(`Authorization: Bearer ${token}\r\n`)),
      'HTTP/1.1 101 ada true undefined\r\n\r\n',
    );
    for (const fields of ['', 'Authorization: Bearer x\r\n', `Authorization: Bearer ${token}x\r\n`])
      assert.equal(await exchange(port, upgrade(fields)), 'HTTP/1.1 401\r\n\r\n');
    assert.equal(requests, 0);
  });

  it('but without an upgrade handler it is a request as any other', async (t) => {
    const { port } = await guard(t, {}, (_req, res) => {
      res.setHeader('connection', 'close').end();
    });
    assert.match(await exchange(port, upgrade('').replace('Upgrade\r\n', 'Upgrade, close\r\n')), /^HTTP\/1\.1 401 /);
  });

  it('a CONNECT, which has a handler of its own or none', async (t) => {
    let reached = 0;
    const { server, port } = await guard(t, { anonymous: true }, (_req, res) => {
      reached += 1;
      res.end();
    });
    assert.equal(await exchange(port, 'CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n'), '');
    server.on('connect', (_req, socket) => {
      socket.end('HTTP/1.1 200 own\r\n\r\n');
    });
    assert.equal(await exchange(port, 'CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n'), 'HTTP/1.1 200 own\r\n\r\n');
    assert.equal(reached, 0);
  });

  it('checkContinue and checkExpectation, which take the same wrapped listener: it refuses before the body is sent', async (t) => {
    const listener = withAuth(
      async (req, res) => {
        if (req.headers.expect === '100-continue') res.writeContinue();
        res.end(`${getUser().sub} ${await text(req)} ${getUser().sub}`);
      },
      { keys: await serverKeys() },
    );
    const { server, port } = await guard(t, {}, () => assert.fail('the other listener'));
    server.on('checkContinue', listener).on('checkExpectation', listener);
    const head = (expect: string, fields = ''): string =>
      `POST / HTTP/1.1\r\nHost: a\r\nExpect: ${expect}\r\nContent-Length: 4\r\nConnection: close\r\n${fields}\r\n`;
    const good = `Authorization: Bearer ${await mint({ sub: 'ada' })}\r\n`;
    for (const expect of ['100-continue', 'more']) {
      const refused = await exchange(port, head(expect));
      assert.match(refused, /^HTTP\/1\.1 401 /);
      const accepted = await exchange(port, `${head(expect, good)}body`);
      assert.match(
        accepted,
        expect === 'more' ? /^HTTP\/1\.1 200 OK\r\n/ : /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 OK\r\n/,
      );
      assert.match(accepted, /ada body ada/);
    }
  });

  it('and by default Node invites the body itself, before the listener decides', async (t) => {
    const { port } = await guard(t);
    const answer = await exchange(
      port,
      'POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody',
    );
    assert.match(answer, /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 401 /);
  });
});
