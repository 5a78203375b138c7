// An MCP session is used by whoever opened it: on the real SDKs, and by a handler that answers whatever the test wants.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { Agent, type RequestListener } from 'node:http';
import { describe, it } from 'node:test';
import { NodeStreamableHTTPServerTransport } from '@modelcontextprotocol/node';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { McpServer as McpServerV1 } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { McpServer as McpServerV2 } from '@modelcontextprotocol/server';
import { type AuthOptions, compactEncrypt, getUser, JWETokenVerifier, withAuthFetch } from 'mcp-auth-middleware';
import { keyPair, serve } from './support/support.js';
import { type Answer, ask, bearer, guard, serverKeys } from './support/wire.js';

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
        assert.notEqual((await use(bob)).body, NOT_FOUND, 'what is deleted is bound to nobody: the handler answers');
      });
    }

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
      const initialize = JSON.stringify({
        jsonrpc: '2.0',
        id: 1,
        method: 'initialize',
        params: { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'test', version: '1.0.0' } },
      });
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
};
const chosen: RequestListener = (req, res) => {
  const { 'x-open': id, 'x-status': status = '200', 'x-way': way = 'setHeader' } = req.headers;
  if (id === undefined) res.writeHead(Number(status)).end();
  else ways[String(way)]?.(res, Number(status), String(id));
};

describe('opening', () => {
  it('is a 2xx answer with an Mcp-Session-Id, whichever way it is set', async (t) => {
    const { port } = await guard(t, {}, chosen);
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    for (const way of Object.keys(ways)) {
      const opened = await ask(port, { headers: { ...ada, 'x-open': way, 'x-way': way } });
      assert.deepEqual([opened.status, opened.headers['mcp-session-id']], [200, way]);
      const statuses = [ada, bob].map(
        async (who) => (await ask(port, { headers: { ...who, 'mcp-session-id': way } })).status,
      );
      assert.deepEqual(await Promise.all(statuses), [200, 404], way);
    }
  });

  it('is no other answer', async (t) => {
    const { port } = await guard(t, {}, chosen);
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    for (const [status, bound] of [
      [200, true],
      [201, true],
      [202, true],
      [204, true],
      [299, true],
      [300, false],
      [304, false],
      [400, false],
      [401, false],
      [404, false],
      [500, false],
    ] as const) {
      const id = `with ${status}`;
      await ask(port, { method: 'POST', headers: { ...ada, 'x-open': id, 'x-status': String(status) } });
      assert.equal((await ask(port, { headers: { ...bob, 'mcp-session-id': id } })).status, bound ? 404 : 200, id);
    }
  });

  it('is no answer to a request that had a session, and re-binds none', async (t) => {
    const { port } = await guard(t, {}, chosen);
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    const status = async (who: object, id: string): Promise<number> =>
      (await ask(port, { headers: { ...who, 'mcp-session-id': id } })).status;
    await ask(port, { headers: { ...ada, 'x-open': 'hers' } });
    await ask(port, { headers: { ...bob, 'x-open': 'hers' } }); // a handler that hands out one id twice
    assert.deepEqual([await status(ada, 'hers'), await status(bob, 'hers')], [200, 404]);
    await ask(port, { headers: { ...bob, 'mcp-session-id': 'unknown', 'x-open': 'other' } });
    assert.deepEqual([await status(ada, 'unknown'), await status(ada, 'other')], [200, 200]);
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

describe('a session is released', () => {
  it('by a 2xx DELETE of its owner alone', async (t) => {
    const { port } = await guard(t, {}, chosen);
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    const use = async (who: object, more = {}, method = 'GET'): Promise<number> =>
      (await ask(port, { method, headers: { ...who, 'mcp-session-id': 'id', ...more } })).status;
    await ask(port, { headers: { ...ada, 'x-open': 'id' } });
    assert.equal(await use(bob, {}, 'DELETE'), 404);
    assert.equal(await use(ada, { 'x-status': '405' }, 'DELETE'), 405);
    assert.equal(await use(ada, {}, 'POST'), 200);
    assert.equal(await use(bob), 404, 'nothing has released it so far');
    assert.equal(await use(ada, { 'x-status': '204' }, 'DELETE'), 204);
    assert.equal(await use(bob), 200);
    await ask(port, { headers: { ...bob, 'x-open': 'id' } });
    assert.deepEqual([await use(bob), await use(ada)], [200, 404], 'and may be opened anew');
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
        await ask(port, { headers: { ...(await bearer(opener)), 'x-open': name } });
        assert.equal(
          (await ask(port, { headers: { ...(await bearer(user)), 'mcp-session-id': name } })).status,
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

  it('with claimsMember has its sub in there, and its issuer outside', async (t) => {
    const { port } = await guard(t, { claimsMember: 'data' }, chosen);
    await ask(port, { headers: { ...(await bearer({ iss: 'i', data: { sub: 'ada', iss: 'x' } })), 'x-open': 'id' } });
    const use = async (claims: object): Promise<number> =>
      (await ask(port, { headers: { ...(await bearer(claims)), 'mcp-session-id': 'id' } })).status;
    assert.equal(await use({ iss: 'i', sub: 'outside', data: { sub: 'ada', iss: 'y' } }), 200);
    assert.equal(await use({ iss: 'j', data: { sub: 'ada', iss: 'x' } }), 404);
    assert.equal(await use({ iss: 'i', sub: 'ada', data: { sub: 'bob' } }), 404);
  });
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

  it('are 100 sessions of a principal: the one not used for longest is forgotten, and passes', async () => {
    const { open, use } = await server();
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    await open(bob, 'of bob');
    for (let index = 0; index < 100; index += 1) await open(ada, String(index));
    assert.equal(await use(bob, '0'), 404);
    assert.equal(await use(ada, '0'), 204, 'used, and so the youngest');
    await open(ada, '100');
    assert.equal(await use(bob, '1'), 204, 'forgotten');
    assert.deepEqual(await Promise.all(['0', '2', '99', '100'].map((id) => use(bob, id))), [404, 404, 404, 404]);
    assert.equal(await use(ada, 'of bob'), 404, 'a principal with many costs no other one its own');
  });

  it('are 10,000 sessions in all', async () => {
    const { open, use } = await server();
    const users = await Promise.all(Array.from({ length: 101 }, (_, index) => bearer({ sub: `user ${index}` })));
    const [first, ...others] = users;
    const last = others.at(-1);
    assert(first && last);
    for (const [at, user] of users.slice(0, 100).entries())
      for (let index = 0; index < 100; index += 1) await open(user, `${at} ${index}`);
    assert.equal(await use(last, '0 0'), 404);
    await use(first, '0 0');
    await open(last, 'one more');
    assert.equal(await use(last, '0 1'), 204, 'forgotten');
    assert.deepEqual(await Promise.all(['0 0', '0 2', '99 99'].map((id) => use(last, id))), [404, 404, 404]);
    assert.equal(await use(first, 'one more'), 404);
  });

  it('leave room again when sessions are deleted', async (t) => {
    const { port } = await guard(t, {}, chosen);
    const agent = new Agent({ keepAlive: true });
    t.after(() => agent.destroy());
    const [ada, bob] = [await bearer({ sub: 'ada' }), await bearer({ sub: 'bob' })];
    await ask(port, { headers: { ...ada, 'x-open': 'kept' }, agent });
    for (let index = 0; index < 150; index += 1) {
      await ask(port, { headers: { ...ada, 'x-open': String(index) }, agent });
      await ask(port, { method: 'DELETE', headers: { ...ada, 'mcp-session-id': String(index) }, agent });
    }
    assert.equal((await ask(port, { headers: { ...bob, 'mcp-session-id': 'kept' }, agent })).status, 404);
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
