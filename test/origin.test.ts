// Whose server a request means and whose page it comes from: Host against DNS rebinding, Origin against other sites.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createHttp2 } from 'node:http2';
import { createServer as createHttps, request } from 'node:https';
import { type AddressInfo, connect } from 'node:net';
import { describe, it } from 'node:test';
import {
  type AuthOptions,
  encryptToken,
  getUser,
  type TrustedIssuer,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { keyPair, root, run, serve } from './support/support.js';
import { newPair, untyped } from './support/tokens.js';
import { asHttp2, ask, bearer, exchange, exchangeHttp2, guard, mint, serverKeys } from './support/wire.js';

const HOST_REFUSED =
  '{"error":"invalid_request","error_description":"This Host is not allowed; ' +
  'the server sets which are with allowedHosts or resource"}';
const ORIGIN_REFUSED =
  '{"error":"invalid_request","error_description":"This Origin is not allowed; ' +
  'the server sets which ones are with cors.origin"}';

const { publicKey, privateKey } = newPair('ed25519');
const trusted: TrustedIssuer = {
  issuer: 'https://idp.example',
  jwks: untyped({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'idp' }] }),
};
const signing = { trustedIssuers: [trusted], audience: 'us' };
const signed = async (): Promise<string> =>
  encryptToken({ sub: 'ada' }, (await keyPair()).publicJwk, {
    sign: {
      key: untyped({ ...privateKey.export({ format: 'jwk' }), kid: 'idp' }),
      issuer: 'https://idp.example',
      audience: 'us',
    },
  });

/** One request in octets. Its status, and the body where it is refused. */
async function send(port: number, fields: string, version = 'HTTP/1.1', path = '/mcp'): Promise<[number, string]> {
  const answer = await exchange(port, `GET ${path} ${version}\r\n${fields}Connection: close\r\n\r\n`);
  const [head = '', body = ''] = answer.split('\r\n\r\n');
  return [Number(/^HTTP\/1\.1 (\d{3}) /.exec(head)?.[1]), body];
}

// Of a server on loopback, over http. `own` is never refused, `foreign` is what another machine's name may point at.
const OWN = [
  'localhost',
  'localhost:3000',
  'LOCALHOST',
  'LocalHost:80',
  'localhost.',
  'localhost.:3000',
  'mcp.localhost',
  'a.b.localhost:1',
  'a.LOCALHOST.',
  'localhost:',
  '127.0.0.1',
  '127.0.0.1:3000',
  '127.9.9.9',
  '10.0.0.5',
  '192.0.2.1:65535',
  '0.0.0.0',
  '[::1]',
  '[::1]:3000',
  '[::1]:',
  '[2001:db8::1]:443',
  '[::ffff:127.0.0.1]',
  '[FE80::1]',
  '',
];
const FOREIGN = [
  'evil.example',
  'evil.example:3000',
  'evil',
  'a',
  'localhost.evil.example',
  'evil-localhost',
  'xlocalhost',
  'localhost.local',
  'localhosts',
  'localdomain',
  '127.0.0.1.evil.example',
  '127.0.0.1.nip.example',
  'www.127.0.0.1',
  '127.1',
  '2130706433',
  '0x7f000001',
  '0177.0.0.1',
  '256.0.0.1',
  '1.2.3.4.5',
  '::1',
  '::1:3000',
  '[::1',
  '[::1]x',
  '[::g]',
  '[evil.example]',
  '[127.0.0.1].evil.example',
  'localhost@evil.example',
  'evil.example@localhost',
  'user:localhost@evil.example:80',
  'localhost/evil.example',
  'http://localhost',
  'localhost#',
  'localhost?',
  'localhost\\',
  'localhost,evil.example',
  'localhost evil.example',
  'localhost\tevil.example',
  'localhost:80:80',
  'localhost::',
  'localhost:x',
  'localhost:-1',
  'localhost:999999',
  'localhost..',
  '.localhost.evil.example',
  'l\xf6calhost',
  'localhost\xa0',
  '*',
  'null',
  'undefined',
];

describe('the Host of a request to a server on this machine', () => {
  it('is an IP literal, localhost, a name below it, or none', async (t) => {
    const { port } = await guard(t, {}, (_req, res) => res.end('reached'));
    const token = `Authorization: Bearer ${await mint({ sub: 'ada' })}\r\n`;
    for (const host of OWN) {
      assert.deepEqual(await send(port, `Host: ${host}\r\n${token}`), [200, 'reached'], JSON.stringify(host));
      assert.equal((await send(port, `Host: ${host}\r\n`))[0], 401, host);
    }
    for (const fields of ['', token])
      assert.equal((await send(port, fields, 'HTTP/1.0'))[0], fields === '' ? 401 : 200, 'none in HTTP/1.0');
  });

  it('is refused otherwise, whatever token comes along', async (t) => {
    const { port } = await guard(t, { anonymous: true, publicPaths: ['/open'] }, () => assert.fail('reached'));
    const tokens = ['', 'Authorization: Bearer x\r\n', `Authorization: Bearer ${await mint({ sub: 'ada' })}\r\n`];
    for (const host of FOREIGN) {
      for (const token of tokens) {
        const answer = await send(port, `Host: ${host}\r\n${token}`);
        assert.deepEqual(answer, [403, HOST_REFUSED], `${JSON.stringify(host)} ${token.slice(0, 30)}`);
      }
      assert.deepEqual(await send(port, `Host: ${host}\r\n`, 'HTTP/1.1', '/open'), [403, HOST_REFUSED], host);
    }
  });

  it('does not close the public documents', async (t) => {
    const { port } = await guard(t, { resource: 'https://mcp.example/mcp', openidConfiguration: true });
    const paths = ['jwks.json', 'oauth-protected-resource', 'oauth-protected-resource/mcp', 'openid-configuration'];
    for (const path of paths)
      assert.equal((await send(port, 'Host: evil.example\r\n', 'HTTP/1.1', `/.well-known/${path}`))[0], 200, path);
  });

  it('stands once', async (t) => {
    const { port } = await guard(t, { allowedHosts: ['mcp.example'] }, () => assert.fail('reached'));
    const token = `Authorization: Bearer ${await mint({ sub: 'ada' })}\r\n`;
    for (const hosts of [
      ['localhost', 'evil.example'],
      ['evil.example', 'localhost'],
      ['localhost', 'localhost'],
      ['mcp.example', 'localhost'],
      ['', 'localhost'],
      ['localhost', ''],
    ]) {
      const fields = hosts.map((host, index) => `${index ? 'hOST' : 'Host'}: ${host}\r\n`).join('');
      assert.equal((await send(port, fields + token))[0], 400, hosts.join());
    }
  });

  const configured: [name: string, options: AuthOptions, own: string[], foreign: string[]][] = [
    [
      'with a resource, its name too',
      { resource: 'https://MCP.example:8443/mcp' },
      ['mcp.example', 'mcp.example:1', 'MCP.EXAMPLE.', 'localhost', '127.0.0.1'],
      ['xmcp.example', 'mcp.example.evil.example', 'a.mcp.example', 'example', 'evil.example'],
    ],
    [
      'with a resource that is an address, its name too',
      { resource: 'http://127.0.0.1:3000/mcp' },
      ['127.0.0.1:3000', 'localhost', '[::1]'],
      ['evil.example:3000', 'mcp.example'],
    ],
    [
      'with allowedHosts, those too',
      { allowedHosts: ['MCP.example', 'proxy.internal.', 'a_b'] },
      ['mcp.example', 'Mcp.Example.:443', 'proxy.internal', 'PROXY.internal.:80', 'a_b', 'localhost', '10.0.0.1'],
      ['proxy.internal..', 'internal', 'x.proxy.internal', 'evil.example', 'a_b.evil.example'],
    ],
    [
      'with both, all of them',
      { allowedHosts: ['inner.example'], resource: 'https://outer.example' },
      ['inner.example', 'outer.example'],
      ['example', 'evil.example'],
    ],
    [
      'with signed tokens for anonymous requests as well',
      { ...signing, anonymous: true },
      ['localhost', '127.0.0.1'],
      ['evil.example', 'idp.example'],
    ],
  ];
  for (const [name, options, own, foreign] of configured) {
    it(`is, ${name}`, async (t) => {
      const { port } = await guard(t, options, (_req, res) => res.end());
      for (const host of own) {
        const [status] = await send(port, `Host: ${host}\r\n`);
        assert.equal(status, options.anonymous ? 200 : 401, host);
      }
      for (const host of foreign) assert.deepEqual(await send(port, `Host: ${host}\r\n`), [403, HOST_REFUSED], host);
    });
  }

  it('may be any where only signed tokens count, for a page can mint none', async (t) => {
    const { port } = await guard(t, signing, (_req, res) => res.end(String(getUser().sub)));
    const token = `Authorization: Bearer ${await signed()}\r\n`;
    for (const host of ['evil.example', 'mcp.internal:80', 'localhost']) {
      assert.deepEqual(await send(port, `Host: ${host}\r\n${token}`), [200, 'ada'], host);
      assert.equal((await send(port, `Host: ${host}\r\n`))[0], 401, host);
    }
    const strict = await guard(t, { ...signing, allowedHosts: ['mcp.example'] });
    assert.deepEqual(await send(strict.port, `Host: evil.example\r\n${token}`), [403, HOST_REFUSED]);
    assert.equal((await send(strict.port, `Host: mcp.example\r\n${token}`))[0], 200);
  });
});

describe('the connection that a foreign Host comes over', () => {
  /** A socket as the host of the middleware may show it. */
  const sockets: [name: string, socket: object | null | undefined, isLocal: boolean][] = [
    ['127.0.0.1', { localAddress: '127.0.0.1' }, true],
    ['127.200.3.4', { localAddress: '127.200.3.4' }, true],
    ['::1', { localAddress: '::1' }, true],
    ['::ffff:127.0.0.1', { localAddress: '::ffff:127.0.0.1' }, true],
    ['::ffff:127.9.8.7', { localAddress: '::ffff:127.9.8.7' }, true],
    ['127.0.0.1, not encrypted', { localAddress: '127.0.0.1', encrypted: false }, true],
    ['127.0.0.1, encrypted', { localAddress: '127.0.0.1', encrypted: true }, false],
    ['::1, encrypted', { localAddress: '::1', encrypted: true }, false],
    ['10.0.0.5', { localAddress: '10.0.0.5' }, false],
    ['::ffff:10.0.0.5', { localAddress: '::ffff:10.0.0.5' }, false],
    ['192.168.127.1', { localAddress: '192.168.127.1' }, false],
    ['1.127.0.0', { localAddress: '1.127.0.0' }, false],
    ['128.0.0.1', { localAddress: '128.0.0.1' }, false],
    ['fe80::1', { localAddress: 'fe80::1' }, false],
    ['::10', { localAddress: '::10' }, false],
    ['2001:db8::1', { localAddress: '2001:db8::1' }, false],
    ['::', { localAddress: '::' }, false],
    ['no address, as of a Unix socket', {}, false],
    ['no socket, as of an emulation', undefined, false],
    ['null for a socket', null, false],
  ];
  for (const [name, socket, isLocal] of sockets) {
    it(`is ${isLocal ? '' : 'not '}this machine’s: ${name}`, async (t) => {
      const guarded = withAuth((_req, res) => res.end('reached'), { keys: await serverKeys(), anonymous: true });
      const strict = withAuth((_req, res) => res.end('reached'), {
        keys: await serverKeys(),
        anonymous: true,
        allowedHosts: ['mcp.example'],
      });
      const { port } = await serve(t, (req, res) => {
        const shown: IncomingMessage = Object.create(req, { socket: { value: socket } });
        (req.url === '/strict' ? strict : guarded)(shown, res);
      });
      const status = async (host: string, path: string): Promise<number> =>
        (await send(port, `Host: ${host}\r\n`, 'HTTP/1.1', path))[0];
      assert.equal(await status('evil.example', '/'), isLocal ? 403 : 200);
      assert.equal(await status('localhost', '/'), 200);
      assert.equal(await status('evil.example', '/strict'), 403, 'allowedHosts counts wherever it comes from');
      assert.equal(await status('mcp.example', '/strict'), 200);
    });
  }

  it('is this machine’s over IPv6, and over a socket that takes both', async (t) => {
    const guarded = withAuth((_req, res) => res.end('reached'), { keys: await serverKeys(), anonymous: true });
    const addresses: unknown[] = [];
    for (const [listening, asked] of [
      ['::1', '::1'],
      ['::', '::1'],
      ['::', '127.0.0.1'],
      ['0.0.0.0', '127.0.0.2'],
    ] as const) {
      const server = createServer((req, res) => {
        addresses.push(req.socket.localAddress);
        guarded(req, res);
      }).listen(0, listening);
      t.after(() => server.close());
      await once(server, 'listening');
      const { port } = server.address() as AddressInfo;
      for (const [host, status] of [
        ['evil.example', 403],
        ['localhost', 200],
      ] as const) {
        const socket = connect(port, asked);
        socket.end(`GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`);
        let answer = '';
        for await (const chunk of socket) answer += String(chunk);
        assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} `), `${listening} ${asked} ${host}`);
      }
    }
    assert.ok(addresses.includes('::ffff:127.0.0.1'), addresses.join());
  });

  it('may bring any Host over TLS, where a rebound page fails at the certificate', async (t) => {
    const psk = Buffer.alloc(32, 7);
    const tls = { ciphers: 'PSK', minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' } as const; // RFC 4279: no certificate
    const listener = withAuth((_req, res) => res.end('reached'), { keys: await serverKeys() });
    const server = createHttps({ ...tls, pskCallback: () => psk }, listener).listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const authorized = await bearer({ sub: 'ada' });
    for (const [headers, status] of [
      [{ host: 'mcp.example', ...authorized }, 200],
      [{ host: 'mcp.example' }, 401],
      [{ host: 'mcp.example', origin: 'https://mcp.example', ...authorized }, 403],
    ] as const) {
      const options = {
        ...tls,
        host: '127.0.0.1',
        port,
        headers: { ...headers },
        agent: false,
        pskCallback: () => ({ psk, identity: 'test' }),
        checkServerIdentity: () => undefined,
      };
      const req = request(options).end();
      const [res] = (await once(req, 'response')) as [IncomingMessage];
      res.resume();
      assert.equal(res.statusCode, status);
    }
  });

  it('over HTTP/2 names its Host in :authority, else in host', async (t) => {
    const listener = withAuth((_req, res) => res.end('reached'), { keys: await serverKeys(), anonymous: true });
    const server = createHttp2(asHttp2(listener)).listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const cases: [fields: [string, string][], body: string][] = [
      [[[':authority', 'localhost']], 'reached'],
      [[[':authority', 'evil.example']], HOST_REFUSED],
      [[['host', 'localhost']], 'reached'],
      [[['host', 'evil.example']], HOST_REFUSED],
      [
        [
          [':authority', 'evil.example'],
          ['host', 'localhost'],
        ],
        HOST_REFUSED,
      ],
      [
        [
          [':authority', 'localhost'],
          ['origin', 'http://localhost'],
        ],
        'reached',
      ],
      [
        [
          [':authority', 'localhost'],
          ['origin', 'http://evil.example'],
        ],
        ORIGIN_REFUSED,
      ],
      [
        [
          [':authority', 'evil.example'],
          ['origin', 'http://evil.example'],
        ],
        HOST_REFUSED,
      ],
    ];
    for (const [fields, body] of cases) assert.equal(await exchangeHttp2(port, fields), body, JSON.stringify(fields));
    // Of two hosts nghttp2 makes a reset itself.
    const twice: [string, string][] = ['http://localhost', 'http://localhost'].map((origin) => ['origin', origin]);
    assert.match(await exchangeHttp2(port, twice), /"invalid_request".*more than once/);
  });

  it('behind fetch is unknown, so that allowedHosts alone decides', async () => {
    const keys = await serverKeys();
    const handler = (): Response => new Response('reached');
    const open = withAuthFetch(handler, { keys, anonymous: true });
    const strict = withAuthFetch(handler, { keys, anonymous: true, allowedHosts: ['mcp.example'] });
    const named = withAuthFetch(handler, { keys, anonymous: true, resource: 'https://mcp.example/mcp' });
    for (const [answer, host, status] of [
      [open, 'evil.example', 200],
      [open, '127.0.0.1:3000', 200],
      [named, 'evil.example', 200],
      [strict, 'evil.example', 403],
      [strict, 'mcp.example.evil.example', 403],
      [strict, 'MCP.example:8443', 200],
      [strict, 'localhost:1', 200],
      [strict, '[::1]', 200],
      [strict, '10.0.0.1', 200],
    ] as const) {
      assert.equal((await answer(new Request(`http://${host}/mcp`))).status, status, host);
      assert.equal((await answer(new Request(`http://${host}/.well-known/jwks.json`))).status, 200);
    }
  });
});

describe('the warning of a foreign Host', () => {
  it('comes once in a process, says what to set, and the event each time', async () => {
    const program = `
      import { createServer, get } from 'node:http';
      import { withAuth } from 'mcp-auth-middleware';
      const warnings = [];
      const events = [];
      process.on('warning', ({ code, message }) => code === 'MCP_AUTH_HOST' && warnings.push(message));
      const onEvent = ({ type, reason, status }) => events.push({ type, reason, status });
      const options = { keys: JSON.parse(process.env.TEST_KEYS), onEvent };
      for (let n = 0; n < 2; n += 1) {
        const server = createServer(withAuth(() => {}, options)).listen(0, '127.0.0.1');
        await new Promise((resolve) => server.once('listening', resolve));
        const target = { host: '127.0.0.1', port: server.address().port, agent: false };
        for (const host of ['evil.example', 'evil.example', 'other.example'])
          await new Promise((end) => get({ ...target, headers: { host } }, (res) => res.resume().on('end', end)));
        server.close();
      }
      console.log(JSON.stringify({ warnings, events: events.filter(({ type }) => type === 'rejected') }));`;
    const env = { NODE_OPTIONS: undefined, TEST_KEYS: JSON.stringify(await serverKeys()) };
    const { stdout, stderr } = await run(process.execPath, ['--no-warnings', '--input-type=module', '-e', program], {
      cwd: root,
      env,
    });
    const { warnings, events }: { warnings: string[]; events: object[] } = JSON.parse(stdout || stderr);
    assert.equal(warnings.length, 1, stdout);
    assert.match(warnings[0] ?? '', /allowedHosts or resource/);
    assert.doesNotMatch(warnings[0] ?? '', /evil/);
    assert.deepEqual(
      events,
      Array.from({ length: 6 }, () => ({ type: 'rejected', reason: 'host', status: 403 })),
    );
  });
});

describe('the Origin of a request', () => {
  // Beside each Host, the Origins that are this very server's, and those that are not.
  const ROWS: [host: string, own: string[], foreign: string[]][] = [
    [
      'localhost:3000',
      ['http://localhost:3000', 'https://localhost:3000'],
      [
        'http://localhost',
        'http://localhost:3001',
        'http://127.0.0.1:3000',
        'http://localhost:3000/',
        'http://LOCALHOST:3000',
        'http://user@localhost:3000',
        'ftp://localhost:3000',
        'localhost:3000',
        '//localhost:3000',
        'http://localhost:3000, http://localhost:3000',
        'http://evil.example:3000',
        'chrome-extension://localhost:3000',
        'null',
        '',
      ],
    ],
    [
      'localhost',
      ['http://localhost', 'https://localhost'],
      ['http://localhost:80', 'https://localhost:443', 'http://localhost:443'],
    ],
    ['LOCALHOST:80', ['http://localhost', 'https://localhost:80'], ['https://localhost', 'http://LOCALHOST:80']],
    [
      '127.0.0.1:8080',
      ['http://127.0.0.1:8080'],
      ['http://localhost:8080', 'http://127.0.0.1', 'http://127.0.0.2:8080'],
    ],
    ['[::1]:3000', ['http://[::1]:3000'], ['http://[::1]', 'http://::1:3000', 'http://[::2]:3000']],
    ['', [], ['http://localhost', 'http://', 'null']],
  ];
  it('is this server’s own where it is that of a Host that is never refused', async (t) => {
    const { port } = await guard(t, {}, (_req, res) => res.end('reached'));
    const token = `Authorization: Bearer ${await mint({ sub: 'ada' })}\r\n`;
    for (const [host, own, foreign] of ROWS) {
      const sent = (origin: string): Promise<[number, string]> =>
        send(port, `Host: ${host}\r\nOrigin: ${origin}\r\n${token}`);
      for (const origin of own) assert.deepEqual(await sent(origin), [200, 'reached'], `${host} ${origin}`);
      for (const origin of foreign) assert.deepEqual(await sent(origin), [403, ORIGIN_REFUSED], `${host} ${origin}`);
    }
  });

  it('equal to a Host that might be anybody’s is no proof, wherever that Host is let through', async (t) => {
    const options: AuthOptions = { keys: await serverKeys(), anonymous: true };
    const elsewhere = async (guarded: (req: IncomingMessage, res: ServerResponse) => unknown): Promise<number> => {
      const socket = { localAddress: '10.0.0.5' };
      return (await serve(t, (req, res) => void guarded(Object.create(req, { socket: { value: socket } }), res))).port;
    };
    const plain = await elsewhere(withAuth((_req, res) => res.end('reached'), options));
    const named = await elsewhere(
      withAuth((_req, res) => res.end('reached'), {
        ...options,
        allowedHosts: ['inner.example'],
        resource: 'https://outer.example/mcp',
      }),
    );
    for (const [port, host, origin, status] of [
      [plain, 'mcp.internal', undefined, 200],
      [plain, 'mcp.internal', 'http://mcp.internal', 403],
      [plain, 'mcp.internal', 'https://mcp.internal', 403],
      [plain, '10.0.0.5:3000', 'http://10.0.0.5:3000', 200],
      [named, 'inner.example', 'http://inner.example', 200],
      [named, 'inner.example:81', 'https://inner.example:81', 200],
      [named, 'inner.example', 'https://outer.example', 200],
      [named, 'inner.example', 'http://outer.example', 403],
      [named, 'outer.example', 'http://outer.example', 200],
      [named, 'inner.example', 'http://evil.example', 403],
    ] as const) {
      const fields = `Host: ${host}\r\n${origin === undefined ? '' : `Origin: ${origin}\r\n`}`;
      assert.equal((await send(port, fields))[0], status, fields);
    }
  });

  const EXTENSIONS = [
    'chrome-extension://abcdefghijklmnopabcdefghijklmnop',
    'moz-extension://0b6a1d5e-1111-4222-8333-444455556666',
    'safari-web-extension://0B6A1D5E-1111-4222-8333-444455556666',
    'vscode-webview://1a2b3c',
    'vscode-file://vscode-app',
    'capacitor://localhost',
    'ionic://localhost',
    'tauri://localhost:1430',
    'app://obsidian.md',
  ];
  it('may be an extension’s or a web view’s that is listed, exactly', async (t) => {
    const { port } = await guard(t, { cors: { origin: [...EXTENSIONS.slice(0, 8), 'https://app.example'] } });
    const headers = await bearer({ sub: 'ada' });
    for (const origin of EXTENSIONS.slice(0, 8)) {
      const answer = await ask(port, { headers: { ...headers, origin } });
      assert.deepEqual([answer.status, answer.headers['access-control-allow-origin']], [200, origin]);
      const preflight = await ask(port, {
        method: 'OPTIONS',
        headers: { origin, 'access-control-request-method': 'POST' },
      });
      assert.deepEqual([preflight.status, preflight.headers['access-control-allow-origin']], [204, origin]);
      for (const other of [`${origin}x`, `${origin}/`, origin.toUpperCase(), origin.replace('://', ':'), `x${origin}`])
        assert.equal((await ask(port, { headers: { ...headers, origin: other } })).status, 403, other);
    }
    for (const origin of ['app://obsidian.md', 'chrome-extension://', 'file://', 'null'])
      assert.equal((await ask(port, { headers: { ...headers, origin } })).status, 403, origin);
  });

  it('is refused twice, whatever each of them is', async (t) => {
    const { port } = await guard(t, { cors: { origin: '*' } }, () => assert.fail('reached'));
    const token = `Authorization: Bearer ${await mint({ sub: 'ada' })}\r\n`;
    for (const [one, two] of [
      ['http://localhost', 'http://localhost'],
      ['https://evil.example', 'http://localhost'],
      ['', 'null'],
    ])
      assert.equal((await send(port, `Host: localhost\r\nOrigin: ${one}\r\noRIGIN: ${two}\r\n${token}`))[0], 400);
  });
});
