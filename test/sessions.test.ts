// An MCP session is used by whoever opened it: on the real SDKs, and by a handler that answers whatever the test wants.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import type { RequestListener, ServerResponse } from 'node:http';
import {
  connect as connectHttp2,
  createServer as serveHttp2,
  type Http2ServerRequest,
  type Http2ServerResponse,
} from 'node:http2';
import { describe, it } from 'node:test';
import { NodeStreamableHTTPServerTransport } from '@modelcontextprotocol/node';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { McpServer as McpServerV1 } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { McpServer as McpServerV2 } from '@modelcontextprotocol/server';
import {
  authMiddleware,
  type AuthOptions,
  compactEncrypt,
  getUser,
  JWETokenVerifier,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { used } from './support/memory.js';
import { keyPair, serve } from './support/support.js';
import { untyped } from './support/tokens.js';
import { type Answer, ask, bearer, exchange, guard, mint, serverKeys } from './support/wire.js';

const NOT_FOUND = '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}';

const greeting = (): { content: { type: 'text'; text: string }[] } => ({
  content: [{ type: 'text', text: `Hello, ${String(getUser().sub)}!` }],
});

/** A stateful MCP server as its SDK's documentation has it: one transport per session. */
interface Transport {
  sessionId?: string | undefined;
  handleRequest: (...args: Parameters<RequestListener>) => Promise<void>;
  close: () => Promise<void>;
}
type MakeTransport = (options: {
  sessionIdGenerator: () => string;
  onsessioninitialized: (id: string) => void;
  onsessionclosed: (id: string) => void;
  enableJsonResponse: boolean;
}) => Promise<Transport>;

const sdks: Record<string, MakeTransport> = {
  'SDK v1': async (options) => {
    const transport = new StreamableHTTPServerTransport(options);
    const mcp = new McpServerV1({ name: 'hello', version: '1.0.0' });
    mcp.registerTool('whoami', { description: 'Says who is asking' }, greeting);
    await mcp.connect(transport);
    return transport;
  },
  'SDK v2': async (options) => {
    const transport = new NodeStreamableHTTPServerTransport(options);
    const mcp = new McpServerV2({ name: 'hello', version: '1.0.0' });
    mcp.registerTool('whoami', { description: 'Says who is asking' }, greeting);
    await mcp.connect(transport);
    return transport;
  },
};

function stateful(
  make: MakeTransport,
  enableJsonResponse: boolean,
): { handler: RequestListener; sessions: Map<string, Transport> } {
  const sessions = new Map<string, Transport>();
  const handler: RequestListener = async (req, res) => {
    const id = req.headers['mcp-session-id'];
    let transport = typeof id === 'string' ? sessions.get(id) : undefined;
    if (!transport) {
      const made = await make({
        sessionIdGenerator: randomUUID,
        enableJsonResponse,
        onsessioninitialized: (opened) => {
          sessions.set(opened, made);
        },
        onsessionclosed: (closed) => {
          sessions.delete(closed);
        },
      });
      transport = made;
    }
    await transport.handleRequest(req, res);
  };
  return { handler, sessions };
}

const MCP = { 'content-type': 'application/json', accept: 'application/json, text/event-stream' };
const call = (id: number): string =>
  JSON.stringify({ jsonrpc: '2.0', id, method: 'tools/call', params: { name: 'whoami', arguments: {} } });

const initialize = JSON.stringify({
  jsonrpc: '2.0',
  id: 1,
  method: 'initialize',
  params: { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'test', version: '1.0.0' } },
});

describe('a session of a real MCP server', () => {
  for (const [sdk, make] of Object.entries(sdks)) {
    for (const enableJsonResponse of [true, false]) {
      it(`belongs to the user that opened it, ${sdk}, ${enableJsonResponse ? 'JSON' : 'streams'}`, async (t) => {
        const { handler, sessions } = stateful(make, enableJsonResponse);
        const { port, url } = await guard(t, { anonymous: true }, handler);
        const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];

        const transport = new StreamableHTTPClientTransport(new URL('/mcp', url), { requestInit: { headers: ada } });
        const client = new Client({ name: 'test', version: '1.0.0' });
        await client.connect(transport);
        t.after(() => client.close());
        const hello = [{ type: 'text', text: 'Hello, ada!' }];
        assert.deepEqual((await client.callTool({ name: 'whoami' })).content, hello);
        const session = transport.sessionId;
        assert(session && sessions.has(session));

        const use = (headers: object, method = 'POST'): Promise<Answer> =>
          ask(port, {
            method,
            headers: {
              ...MCP,
              ...headers,
              'mcp-session-id': session,
              'mcp-protocol-version': transport.protocolVersion ?? '',
            },
            ...(method === 'POST' && { body: call(7) }),
          });
        for (const method of ['POST', 'GET', 'DELETE']) {
          for (const who of [bob, {}, await bearer({ sub: 'ada', iss: 'https://other.example' })]) {
            const { status, headers, body } = await use(who, method);
            assert.deepEqual([status, headers['content-type'], body], [404, 'application/json', NOT_FOUND], method);
          }
        }
        assert.deepEqual((await client.callTool({ name: 'whoami' })).content, hello, 'its owner goes on');
        const refreshed = await use(await bearer({ sub: 'ada', jti: 'another', name: 'Ada' }));
        assert.equal(refreshed.status, 200, 'with a new token as well');
        assert.match(refreshed.body, /Hello, ada!/);
        assert.equal(sessions.size, 1);
        await transport.terminateSession();
        assert.equal(sessions.size, 0);
        assert.equal((await use(bob)).body, NOT_FOUND, 'what is deleted stays whose it was');
      });
    }

    it(`that is opened with a stale id belongs to whoever opened it, and the stale one too, ${sdk}`, async (t) => {
      const { handler, sessions } = stateful(make, true);
      const { port } = await guard(t, {}, handler);
      t.after(() => Promise.all([...sessions.values()].map((transport) => transport.close())));
      const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
      const opened = await ask(port, {
        method: 'POST',
        headers: { ...MCP, ...ada, 'mcp-session-id': 'of-before-the-restart' },
        body: initialize,
      });
      assert.equal(opened.status, 200);
      const fresh = String(opened.headers['mcp-session-id']);
      assert.ok(sessions.has(fresh));
      const use = async (who: object, id: string): Promise<[number, string]> => {
        const headers = { ...MCP, ...who, 'mcp-session-id': id, 'mcp-protocol-version': '2025-06-18' };
        const { status, body } = await ask(port, { method: 'POST', headers, body: call(3) });
        return [status, body];
      };
      for (const id of [fresh, 'of-before-the-restart']) assert.deepEqual(await use(bob, id), [404, NOT_FOUND]);
      const [status, body] = await use(ada, fresh);
      assert.equal(status, 200);
      assert.match(body, /Hello, ada!/);
    });

    it(`not found is said as the server itself says it, ${sdk}`, async (t) => {
      // One transport for everyone: it says itself when a session is not its own.
      const transport = await sdks[sdk]?.({
        sessionIdGenerator: randomUUID,
        onsessioninitialized() {},
        onsessionclosed() {},
        enableJsonResponse: true,
      });
      assert(transport);
      const { port } = await serve(t, (req, res) => void transport.handleRequest(req, res));
      const opened = await ask(port, { method: 'POST', headers: MCP, body: initialize });
      assert.equal(opened.status, 200);
      const { status, headers, body } = await ask(port, {
        method: 'POST',
        headers: { ...MCP, 'mcp-session-id': 'unknown' },
        body: call(2),
      });
      assert.deepEqual([status, headers['content-type'], body], [404, 'application/json', NOT_FOUND]);
      await transport.close();
    });
  }
});

/** Answers with the status and the session id that the request names, in the way it names. */
const ways: Record<string, (res: Parameters<RequestListener>[1], status: number, id: string) => void> = {
  setHeader: (res, status, id) => {
    res.statusCode = status;
    res.setHeader('Mcp-Session-Id', id).end();
  },
  appendHeader: (res, status, id) => {
    res.statusCode = status;
    res.appendHeader('mcp-session-id', id).end();
  },
  setHeaders: (res, status, id) => {
    res.statusCode = status;
    res.setHeaders(new Headers({ 'mcp-session-id': id })).end();
  },
  'setHeader, then writeHead': (res, status, id) => {
    res.setHeader('mcp-session-id', id).writeHead(status).end();
  },
  'setHeader, then writeHead with others': (res, status, id) => {
    res.setHeader('mcp-session-id', id).writeHead(status, { 'x-y': 'z' }).end();
  },
  'setHeader, then write': (res, status, id) => {
    res.statusCode = status;
    res.setHeader('mcp-session-id', id).write('x');
    res.end();
  },
  'setHeader, then flushHeaders': (res, status, id) => {
    res.statusCode = status;
    res.setHeader('mcp-session-id', id).flushHeaders();
    res.end();
  },
  'writeHead with an object': (res, status, id) => {
    res.writeHead(status, { 'x-y': 'z', 'Mcp-Session-Id': id }).end();
  },
  'writeHead with a message and an object': (res, status, id) => {
    res.writeHead(status, 'Message', { 'MCP-SESSION-ID': id }).end();
  },
  'writeHead with an object that has a list': (res, status, id) => {
    res.writeHead(status, { 'set-cookie': ['a=b', 'c=d', 'e=f'], 'mcp-session-id': id }).end();
  },
  'writeHead with a flat array': (res, status, id) => {
    res.writeHead(status, ['x-y', 'z', 'Mcp-Session-Id', id]).end();
  },
  'writeHead with a message and a flat array': (res, status, id) => {
    res.writeHead(status, 'Message', ['mcp-session-id', id]).end();
  },
  'writeHead over setHeader': (res, status, id) => {
    res.setHeader('mcp-session-id', 'replaced').writeHead(status, { 'mcp-session-id': id }).end();
  },
  'writeHead with a flat array whose value is the name': (res, status, id) => {
    res.writeHead(status, ['x-y', 'mcp-session-id', 'mcp-session-id', id]).end();
  },
  'writeHead with an array of pairs': (res, status, id) => {
    res
      .writeHead(
        status,
        untyped([
          ['x-y', 'z'],
          ['Mcp-Session-Id', id],
        ]),
      )
      .end();
  },
  'writeHead with a message and an array of pairs': (res, status, id) => {
    res.writeHead(status, 'Message', untyped([['mcp-session-id', id]])).end();
  },
  'writeHead with no message and an object': (res, status, id) => {
    res.writeHead(status, untyped(undefined), { 'Mcp-Session-Id': id }).end();
  },
  'writeHead with an object whose value is a list': (res, status, id) => {
    res.writeHead(status, { 'mcp-session-id': [id] }).end();
  },
  'setHeader in capitals, then end with a body': (res, status, id) => {
    res.statusCode = status;
    res.setHeader('MCP-SESSION-ID', id).end(status === 204 || status === 304 ? undefined : 'x');
  },
  'setHeader with a list': (res, status, id) => {
    res.statusCode = status;
    res.setHeader('mcp-session-id', [id]).end();
  },
  'a wrapper of writeHead with three parameters': (res, status, id) => {
    const writeHead = res.writeHead.bind(res);
    res.writeHead = untyped((code: number, message: string | undefined, headers: object | undefined) =>
      writeHead(code, untyped(message), untyped({ ...headers, 'mcp-session-id': id })),
    );
    res.writeHead(status).end();
  },
  'a wrapper of writeHead that sets the field': (res, status, id) => {
    const writeHead = res.writeHead;
    res.writeHead = untyped((...args: Parameters<typeof writeHead>) => {
      res.setHeader('mcp-session-id', id);
      return Reflect.apply(writeHead, res, args);
    });
    res.statusCode = status;
    res.end();
  },
  'setHeader with spaces around the id, which no client sees': (res, status, id) => {
    res.statusCode = status;
    res.setHeader('mcp-session-id', ` ${id} `).end();
  },
  'some time later': (res, status, id) => {
    setTimeout(() => res.writeHead(status, { 'mcp-session-id': id }).end(), 10);
  },
};
const chosen: RequestListener = (req, res) => {
  const { 'x-open': id, 'x-status': status = '200', 'x-way': way = 'setHeader' } = req.headers;
  if (id === undefined) res.writeHead(Number(status)).end();
  else ways[String(way)]?.(res, Number(status), String(id));
};

const asId = (text: string): string => text.replaceAll(/[^a-z]+/gi, '-');

describe('opening', () => {
  it('is an answer with an Mcp-Session-Id, whichever way it is set', async (t) => {
    const { port } = await guard(t, {}, chosen);
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    for (const way of Object.keys(ways)) {
      const id = asId(way);
      const opened = await ask(port, { headers: { ...ada, 'x-open': id, 'x-way': way } });
      assert.deepEqual([opened.status, opened.headers['mcp-session-id']], [200, id], way);
      // Bob asks first: had the answer not been seen, the session were his.
      const statuses: number[] = [];
      for (const who of [bob, ada])
        statuses.push((await ask(port, { headers: { ...who, 'mcp-session-id': id } })).status);
      assert.deepEqual(statuses, [404, 200], way);
    }
  });

  for (const method of ['GET', 'POST', 'DELETE', 'OPTIONS', 'PUT']) {
    it(`is an answer of any status, to ${method} with any id or none`, async (t) => {
      const { port } = await guard(t, {}, chosen);
      const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
      for (const status of [200, 201, 202, 204, 299, 300, 304, 400, 401, 403, 404, 409, 500, 503]) {
        for (const before of [undefined, 'stale']) {
          const id = `${method}-with-${status}-${before}`;
          const headers = {
            ...ada,
            'x-open': id,
            'x-status': String(status),
            ...(before && { 'mcp-session-id': before }),
          };
          assert.equal((await ask(port, { method, headers })).status, status);
          assert.equal((await ask(port, { headers: { ...bob, 'mcp-session-id': id } })).status, 404, id);
          assert.equal((await ask(port, { headers: { ...ada, 'mcp-session-id': id } })).status, 200, id);
        }
      }
      assert.equal((await ask(port, { headers: { ...bob, 'mcp-session-id': 'stale' } })).status, 404);
    });
  }

  it('never binds again what is bound', async (t) => {
    const { port } = await guard(t, {}, chosen);
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    const status = async (who: object, id: string): Promise<number> =>
      (await ask(port, { headers: { ...who, 'mcp-session-id': id } })).status;
    await ask(port, { headers: { ...ada, 'x-open': 'hers' } });
    await ask(port, { headers: { ...bob, 'x-open': 'hers' } }); // a handler that hands out one id twice
    assert.deepEqual([await status(bob, 'hers'), await status(ada, 'hers')], [404, 200]);
    assert.equal(await status(bob, 'used'), 200);
    await ask(port, { headers: { ...ada, 'x-open': 'used' } });
    assert.deepEqual([await status(ada, 'used'), await status(bob, 'used')], [404, 200]);
  });

  it('is seen through HTTP/2', async (t) => {
    const server = serveHttp2(
      withAuth(
        (req: Http2ServerRequest, res: Http2ServerResponse) => {
          const { 'x-open': id, 'x-way': way } = req.headers;
          if (id && way === 'setHeader') res.setHeader('Mcp-Session-Id', id);
          if (id && way === 'writeHead') res.writeHead(404, { 'mcp-session-id': id });
          res.end();
        },
        { keys: await serverKeys() },
      ),
    ).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const session = connectHttp2(`http://127.0.0.1:${Object(server.address()).port}`);
    t.after(() => {
      session.destroy();
      server.close();
    });
    const status = async (headers: Record<string, string>): Promise<number> => {
      const stream = session.request({ ':path': '/mcp', ...headers });
      stream.resume().end();
      const [answer] = await once(stream, 'response');
      return Object(answer)[':status'];
    };
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    for (const [way, opened] of [
      ['setHeader', 200],
      ['writeHead', 404],
    ] as const) {
      assert.equal(await status({ ...ada, 'x-open': way, 'x-way': way }), opened);
      assert.deepEqual(
        [await status({ ...bob, 'mcp-session-id': way }), await status({ ...ada, 'mcp-session-id': way })],
        [404, 200],
      );
    }
  });

  it('is a Response of any status, and through authMiddleware', async (t) => {
    const verifier = new JWETokenVerifier({ keys: await serverKeys() });
    const handler = withAuthFetch(
      (request) => {
        const { 'x-open': id, 'x-status': status } = Object.fromEntries(request.headers);
        return new Response(null, { status: Number(status ?? 200), headers: id ? { 'Mcp-Session-Id': id } : {} });
      },
      { verifier },
    );
    const middleware = authMiddleware({ verifier });
    const { port } = await serve(t, (req, res) => middleware(req, res, () => void chosen(req, res)));
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    const viaFetch = async (headers: Record<string, string>): Promise<number> =>
      (await handler(new Request('http://a/mcp', { headers }))).status;
    const viaNode = async (headers: Record<string, string>): Promise<number> => (await ask(port, { headers })).status;
    for (const status of [200, 204, 304, 404, 500]) {
      for (const [name, open] of Object.entries({ viaFetch, viaNode })) {
        const id = `${name}-${status}`;
        assert.equal(await open({ ...ada, 'x-open': id, 'x-status': String(status) }), status);
        for (const use of [viaFetch, viaNode]) {
          assert.deepEqual(
            [await use({ ...bob, 'mcp-session-id': id }), await use({ ...ada, 'mcp-session-id': id })],
            [404, 200],
          );
        }
      }
    }
  });

  it('is none on a public path', async (t) => {
    const { port } = await guard(t, { publicPaths: ['/open'] }, chosen);
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    await ask(port, { path: '/open', headers: { ...ada, 'x-open': 'id' } });
    assert.equal((await ask(port, { headers: { ...bob, 'mcp-session-id': 'id' } })).status, 200);
  });

  it('binds nothing with bindSessions: false', async (t) => {
    const { port } = await guard(t, { bindSessions: false }, chosen);
    await ask(port, { headers: { ...(await bearer({ sub: 'ada' })), 'x-open': 'id' } });
    assert.equal(
      (await ask(port, { headers: { ...(await bearer({ sub: 'bob' })), 'mcp-session-id': 'id' } })).status,
      200,
    );
  });

  it('holds for all that share a verifier', async (t) => {
    const verifier = new JWETokenVerifier({ keys: await serverKeys() });
    const [one, two] = [await guard(t, { verifier }, chosen), await guard(t, { verifier }, chosen)];
    await ask(one.port, { headers: { ...(await bearer({ sub: 'ada' })), 'x-open': 'id' } });
    assert.equal(
      (await ask(two.port, { headers: { ...(await bearer({ sub: 'bob' })), 'mcp-session-id': 'id' } })).status,
      404,
    );
  });
});

describe('first use', () => {
  const use = async (port: number, who: object, id: string): Promise<number> =>
    (await ask(port, { headers: { ...who, 'mcp-session-id': id } })).status;

  it('binds a session that no answer named, as after a restart: the first user wins', async (t) => {
    const keys = await serverKeys();
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    const before = await guard(t, { keys }, chosen);
    for (const id of ['one', 'two']) await ask(before.port, { headers: { ...ada, 'x-open': id } });
    const { port } = await guard(t, { keys }, chosen);
    assert.deepEqual([await use(port, ada, 'one'), await use(port, bob, 'one')], [200, 404]);
    assert.deepEqual([await use(port, bob, 'two'), await use(port, ada, 'two')], [200, 404]);
  });

  type WriteHead = (status: number, headers?: Record<string, string>) => unknown;
  const IN_FRONT: [
    what: string,
    wrap: (writeHead: WriteHead, res: ServerResponse) => WriteHead,
    id: string,
    seen: boolean,
  ][] = [
    [
      'sets as the head is written',
      (writeHead, res) => (status, headers) => {
        res.setHeader('mcp-session-id', 'late');
        return writeHead(status, headers);
      },
      'late',
      true,
    ],
    [
      'makes of the id that the handler names',
      (writeHead, res) =>
        (status, { 'mcp-session-id': id, ...others } = {}) => {
          if (id !== undefined) res.setHeader('mcp-session-id', `signed.${id}`);
          return writeHead(status, others);
        },
      'signed.plain',
      true,
    ],
    [
      'hides, for its first user',
      (writeHead) => (status, headers) => writeHead(status, { ...headers, 'mcp-session-id': 'late' }),
      'late',
      false,
    ],
  ];
  for (const [what, wrap, id, seen] of IN_FRONT) {
    it(`binds what a wrapper in front ${what}`, async (t) => {
      const handler: RequestListener = (_req, res) =>
        res.writeHead(200, id === 'signed.plain' ? { 'mcp-session-id': 'plain' } : {}).end();
      const guarded = withAuth(handler, { keys: await serverKeys() });
      const { port } = await serve(t, (req, res) => {
        const writeHead: WriteHead = (...args) => Reflect.apply(plain, res, args);
        const plain = res.writeHead;
        res.writeHead = untyped(wrap(writeHead, res));
        guarded(req, res);
      });
      const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
      assert.equal((await ask(port, { headers: ada })).headers['mcp-session-id'], id);
      // Bob asks first where the answer was seen: else the session were his.
      const order = seen ? [bob, ada] : [ada, bob];
      const statuses: number[] = [];
      for (const who of order) statuses.push(await use(port, who, id));
      assert.deepEqual(statuses, seen ? [404, 200] : [200, 404]);
    });
  }

  it('binds nothing for a request that is refused, whatever refuses it', async (t) => {
    const options: AuthOptions = {
      audience: 'here',
      requiredClaims: ['email'],
      requiredScopes: ['read'],
      publicPaths: ['/open'],
      isRevoked: ({ user }) => user['revoked'] === true,
    };
    const { port } = await guard(t, options, chosen);
    const good = { sub: 'eve', aud: 'here', email: 'e', scope: 'read' };
    const token = await mint(good);
    const refusals: [what: string, status: number, headers: object, path?: string][] = [
      ['no token', 401, {}],
      ['a malformed token', 401, { authorization: 'Bearer x' }],
      ['a forged token', 401, { authorization: `Bearer ${token.slice(0, -22)}${'A'.repeat(22)}` }],
      ['an expired token', 401, await bearer({ ...good, iat: 1, exp: 2 })],
      ['another audience', 401, await bearer({ ...good, aud: 'there' })],
      ['a revoked token', 401, await bearer({ ...good, revoked: true })],
      ['a missing claim', 403, await bearer({ ...good, email: undefined })],
      ['a missing scope', 403, await bearer({ ...good, scope: 'write' })],
      ['a foreign Origin', 403, { ...(await bearer(good)), origin: 'https://evil.example' }],
      ['two tokens', 400, { authorization: [`Bearer ${token}`, `Bearer ${token}`] }],
      ['a public path', 200, await bearer(good), '/open'],
    ];
    const ada = await bearer({ ...good, sub: 'ada' });
    for (const [index, [what, status, headers, path = '/mcp']] of refusals.entries()) {
      const id = `session-${index}`;
      for (let twice = 0; twice < 2; twice += 1)
        assert.equal((await ask(port, { path, headers: { ...headers, 'mcp-session-id': id } })).status, status, what);
      assert.equal(await use(port, ada, id), 200, `bound by ${what}`);
      assert.equal(await use(port, await bearer(good), id), 404);
    }
  });

  it('is of an id as the handler reads it: one value of visible ASCII characters', async (t) => {
    const { port } = await guard(t, { anonymous: true }, (req, res) => {
      res.end(JSON.stringify(req.headers['mcp-session-id']));
    });
    const raw = async (lines: string): Promise<string> => {
      const answer = await exchange(port, `GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${lines}\r\n`);
      return `${answer.slice(9, 12)} ${answer.slice(answer.indexOf('\r\n\r\n') + 4)}`;
    };
    const refused = '400 {"error":"invalid_request","error_description":';
    const format = `${refused}"Mcp-Session-Id must be one value of visible ASCII characters"}`;
    const twice = `${refused}"Host, Origin or Mcp-Session-Id was sent more than once"}`;
    const rows: [lines: string, expected: string][] = [
      ['Mcp-Session-Id: a\xa0\r\n', format],
      ['Mcp-Session-Id: \xa0a\r\n', format],
      ['Mcp-Session-Id: a b\r\n', format],
      ['Mcp-Session-Id: a\tb\r\n', format],
      ['Mcp-Session-Id: \xe9\r\n', format],
      ['Mcp-Session-Id: \xff\r\n', format],
      ['Mcp-Session-Id: a, b\r\n', format],
      ['Mcp-Session-Id: a\r\nMcp-Session-Id: b\r\n', twice],
      ['Mcp-Session-Id: a\r\nmcp-session-id: a\r\n', twice],
      ['Mcp-Session-Id:\r\nMCP-SESSION-ID: a\r\n', twice],
      ['Mcp-Session-Id: a,b\r\n', '200 "a,b"'],
      ['Mcp-Session-Id:   !#$%&~  \r\n', '200 "!#$%&~"'],
      ['Mcp-Session-Id:\r\n', '200 ""'],
    ];
    for (const [lines, expected] of rows) assert.equal(await raw(lines), expected, JSON.stringify(lines));
    const loose = await guard(t, { anonymous: true, bindSessions: false }, chosen);
    assert.equal((await ask(loose.port, { headers: { 'mcp-session-id': 'a b' } })).status, 400, 'bound or not');
  });
});

describe('a session is not released', () => {
  it('by a DELETE, whoever sends it and whatever the answer is', async (t) => {
    const { port } = await guard(t, {}, chosen);
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    const use = async (who: object, more = {}, method = 'GET'): Promise<number> =>
      (await ask(port, { method, headers: { ...who, 'mcp-session-id': 'id', ...more } })).status;
    await ask(port, { headers: { ...ada, 'x-open': 'id' } });
    assert.equal(await use(bob, {}, 'DELETE'), 404);
    for (const status of [200, 202, 204, 404, 405])
      assert.equal(await use(ada, { 'x-status': String(status) }, 'DELETE'), status);
    assert.deepEqual([await use(bob), await use(ada)], [404, 200]);
    await ask(port, { headers: { ...bob, 'x-open': 'id' } });
    assert.deepEqual([await use(bob), await use(ada)], [404, 200]);
  });
});

describe('the principal', () => {
  const same: [name: string, opener: object, user: object][] = [
    [
      'is (iss, sub), whatever else changes',
      { iss: 'i', sub: 's', name: 'Ada', exp: 4_000_000_000 },
      { sub: 's', iss: 'i', email: 'e', jti: 'j', aud: 'a' },
    ],
    ['is sub alone without an issuer', { sub: 's', a: 1 }, { sub: 's', b: 2 }],
    [
      'without sub is what lasts of the claims',
      { name: 'Ada', exp: 4_000_000_000, iat: 1_700_000_000, nbf: 1_700_000_000, jti: 'a' },
      { jti: 'b', name: 'Ada' },
    ],
    ['without any claim is one', {}, {}],
  ];
  const different: [name: string, opener: object, user: object][] = [
    ['another sub', { iss: 'i', sub: 's' }, { iss: 'i', sub: 't' }],
    ['another iss', { iss: 'i', sub: 's' }, { iss: 'j', sub: 's' }],
    ['no iss', { iss: 'i', sub: 's' }, { sub: 's' }],
    ['iss and sub run together', { iss: 'ab', sub: 'c' }, { iss: 'a', sub: 'bc' }],
    ['a quote in sub', { iss: 'i', sub: 's' }, { sub: '"i","s' }],
    ['no sub', { sub: 's' }, { name: 's' }],
    ['an empty sub', { sub: '' }, {}],
    ['another claim without sub', { name: 'Ada' }, { name: 'Bob' }],
    ['another type of a claim', { id: 1 }, { id: '1' }],
    ['a claim more', { name: 'Ada' }, { name: 'Ada', admin: true }],
    ['an array in another order', { roles: ['a', 'b'] }, { roles: ['b', 'a'] }],
    ['an array for an object', { a: { 0: 'x' } }, { a: ['x'] }],
  ];
  it('is the same or is not', async (t) => {
    const { port } = await guard(t, {}, chosen);
    for (const [rows, status] of [
      [same, 200],
      [different, 404],
    ] as const) {
      for (const [name, opener, user] of rows) {
        await ask(port, { headers: { ...(await bearer(opener)), 'x-open': asId(name) } });
        assert.equal(
          (await ask(port, { headers: { ...(await bearer(user)), 'mcp-session-id': asId(name) } })).status,
          status,
          name,
        );
      }
    }
  });

  it('of claims named like members of Object is another', async (t) => {
    const { port } = await guard(t, {}, chosen);
    const token = async (claims: string): Promise<{ authorization: string }> => ({
      authorization: `Bearer ${compactEncrypt(Buffer.from(claims), (await keyPair()).publicJwk)}`,
    });
    await ask(port, { headers: { ...(await token('{"__proto__":{"a":1}}')), 'x-open': 'id' } });
    assert.equal(
      (await ask(port, { headers: { ...(await token('{"__proto__":{"a":2}}')), 'mcp-session-id': 'id' } })).status,
      404,
    );
    assert.equal((await ask(port, { headers: { ...(await token('{}')), 'mcp-session-id': 'id' } })).status, 404);
  });

  it('of anonymous requests is one of its own', async (t) => {
    const { port } = await guard(t, { anonymous: true }, chosen);
    const use = async (who: object, id: string): Promise<number> =>
      (await ask(port, { headers: { ...who, 'mcp-session-id': id } })).status;
    const users = await Promise.all([{ sub: 'ada' }, {}, { sub: 'anonymous' }].map(bearer));
    await ask(port, { headers: { 'x-open': 'open' } });
    assert.equal(await use({}, 'open'), 200);
    for (const user of users) assert.equal(await use(user, 'open'), 404);
    for (const [index, user] of users.entries()) {
      await ask(port, { headers: { ...user, 'x-open': String(index) } });
      assert.equal(await use({}, String(index)), 404);
    }
  });

  const members: [what: string, opener: object, user: object, status: number][] = [
    ['the same user', { iss: 'i', data: { sub: 'ada' } }, { iss: 'i', data: { sub: 'ada', role: 'x' } }, 200],
    ['the same of both subs', { sub: 'o', data: { sub: 'ada' } }, { sub: 'o', data: { sub: 'ada', iss: 'y' } }, 200],
    ['another sub inside', { iss: 'i', data: { sub: 'ada' } }, { iss: 'i', data: { sub: 'bob' } }, 404],
    ['another sub outside', { sub: 'o', data: { sub: 'ada' } }, { sub: 'p', data: { sub: 'ada' } }, 404],
    ['a sub outside', { data: { sub: 'ada' } }, { sub: 'ada', data: { sub: 'ada' } }, 404],
    ['the subs swapped', { sub: 'a', data: { sub: 'b' } }, { sub: 'b', data: { sub: 'a' } }, 404],
    ['a sub inside for one outside', { sub: 'ada', data: {} }, { data: { sub: 'ada' } }, 404],
    ['another issuer outside', { iss: 'i', data: { sub: 'ada' } }, { iss: 'j', data: { sub: 'ada' } }, 404],
    [
      'another sub outside, equal members',
      { sub: 'ada', data: { role: 'v' } },
      { sub: 'eve', data: { role: 'v' } },
      404,
    ],
    [
      'an equal sub outside, other members',
      { sub: 'ada', data: { role: 'v' } },
      { sub: 'ada', data: { role: 'w' } },
      200,
    ],
    ['no sub, equal members', { data: { role: 'v' } }, { data: { role: 'v' } }, 200],
    ['no sub, other members', { data: { role: 'v' } }, { data: { role: 'w' } }, 404],
  ];
  for (const [what, opener, user, status] of members) {
    it(`with claimsMember is (iss, outer sub, sub): ${what}`, async (t) => {
      const { port } = await guard(t, { claimsMember: 'data' }, chosen);
      await ask(port, { headers: { ...(await bearer(opener)), 'x-open': 'id' } });
      assert.equal((await ask(port, { headers: { ...(await bearer(user)), 'mcp-session-id': 'id' } })).status, status);
    });
  }
});

describe('the bounds', () => {
  // Through fetch, for they take 10,000 sessions; every way to open one is tested above.
  async function server(
    options: AuthOptions = {},
  ): Promise<{ open: (who: object, id: string) => Promise<void>; use: (who: object, id: string) => Promise<number> }> {
    const handler = withAuthFetch(
      (request) => {
        const id = request.headers.get('x-open');
        return new Response(null, { status: 204, ...(id !== null && { headers: { 'mcp-session-id': id } }) });
      },
      { keys: await serverKeys(), ...options },
    );
    return {
      open: async (who, id) => {
        assert.equal((await handler(new Request('http://a/mcp', { headers: { ...who, 'x-open': id } }))).status, 204);
      },
      use: async (who, id) =>
        (await handler(new Request('http://a/mcp', { headers: { ...who, 'mcp-session-id': id } }))).status,
    };
  }

  it('are 100 sessions of a principal: the one not used for longest goes to its next user', async () => {
    const { open, use } = await server();
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    await open(bob, 'of-bob');
    for (let index = 0; index < 100; index += 1) await open(ada, String(index));
    assert.equal(await use(bob, '0'), 404);
    assert.equal(await use(ada, '0'), 204, 'used, and so the youngest');
    await open(ada, '100');
    assert.deepEqual(await Promise.all(['0', '2', '99', '100'].map((id) => use(bob, id))), [404, 404, 404, 404]);
    assert.equal(await use(ada, 'of-bob'), 404, 'a principal with many costs no other one its own');
    assert.deepEqual([await use(bob, '1'), await use(ada, '1')], [204, 404], 'forgotten');
  });

  it('are 100 sessions of a principal by first use as well', async () => {
    const { use } = await server({ anonymous: true });
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    assert.equal(await use(bob, 'of-bob'), 204);
    for (const who of [ada, {}])
      for (let index = 0; index < 300; index += 1)
        assert.equal(await use(who, `${Object.keys(who).length}-${index}`), 204);
    assert.equal(await use(ada, 'of-bob'), 404);
    for (const name of ['0', '1']) {
      assert.deepEqual(await Promise.all([200, 299].map((index) => use(bob, `${name}-${index}`))), [404, 404]);
      assert.deepEqual(await Promise.all([0, 199].map((index) => use(bob, `${name}-${index}`))), [204, 204]);
    }
  });

  it('are 10,000 sessions in all', async () => {
    const { open, use } = await server();
    const users = await Promise.all(Array.from({ length: 101 }, (_, index) => bearer({ sub: `user ${index}` })));
    const [first, ...others] = users;
    const last = others.at(-1);
    assert(first && last);
    for (const [at, user] of users.slice(0, 100).entries())
      for (let index = 0; index < 100; index += 1) await open(user, `${at}-${index}`);
    assert.equal(await use(first, '0-0'), 204);
    await open(last, 'one-more');
    assert.deepEqual(await Promise.all(['0-0', '0-2', '99-99'].map((id) => use(last, id))), [404, 404, 404]);
    assert.equal(await use(first, 'one-more'), 404);
    assert.equal(await use(last, '0-1'), 204, 'forgotten, and so the next user has it');
  });

  it('keep an id over 64 characters whole: none is another one', async () => {
    const { open, use } = await server();
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    for (const length of [63, 64, 65, 66, 1000, 15_000]) {
      const [id, other] = ['a', 'b'].map((end) => 'x'.repeat(length - 1) + end);
      assert.ok(id && other);
      await open(ada, id);
      assert.deepEqual([await use(bob, id), await use(ada, id), await use(bob, other)], [404, 204, 204], `${length}`);
    }
  });

  it('are bounds of memory too: ids of 15 KB cost what short ones do', async () => {
    const { open, use } = await server();
    const users = await Promise.all(Array.from({ length: 50 }, (_, index) => bearer({ sub: `user ${index}` })));
    const [ada = {}] = users;
    for (let index = 0; index < 100; index += 1) await open(ada, `warm-${index}`);
    const before = await used();
    const id = (at: number, index: number): string => `${at}-${index}-`.padEnd(15_000, 'x');
    for (const [at, user] of users.entries())
      for (let index = 0; index < 100; index += 1) await open(user, id(at, index));
    const grown = (await used()) - before;
    assert.ok(grown < 8 * 2 ** 20, `${grown} octets more`); // 5,000 ids of 15 KB are 75 MB
    assert.equal(await use(ada, id(49, 99)), 404);
  });
});

describe('the principal', () => {
  it('without sub does not depend on the order', async () => {
    const handler = withAuthFetch(
      (request) =>
        new Response(null, {
          status: 204,
          ...(!request.headers.has('mcp-session-id') && { headers: { 'mcp-session-id': 'id' } }),
        }),
      { keys: await serverKeys() },
    );
    const use = async (claims: object, more = {}): Promise<number> =>
      (await handler(new Request('http://a/mcp', { headers: { ...(await bearer(claims)), ...more } }))).status;
    assert.equal(await use({ a: { b: 1, c: [1, { d: 2, e: 3 }] }, f: 4 }), 204);
    assert.equal(await use({ f: 4, a: { c: [1, { e: 3, d: 2 }], b: 1 } }, { 'mcp-session-id': 'id' }), 204);
    assert.equal(await use({ f: 4, a: { c: [1, { e: 3, d: 4 }], b: 1 } }, { 'mcp-session-id': 'id' }), 404);
  });
});
