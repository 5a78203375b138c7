// What a request gets: every row of the contract with its exact status, header fields and body, the order of the rows,
// and the octets of a request as an attacker writes them: what counts as a token or as a path, and what never counts.
import assert from 'node:assert/strict';
import { constants, createCipheriv, createPublicKey, publicEncrypt, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { Agent, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { availableParallelism } from 'node:os';
import { describe, it } from 'node:test';
import { extractWWWAuthenticateParams } from '@modelcontextprotocol/client';
import {
  AuthError,
  authMiddleware,
  type AuthOptions,
  bearerToken,
  compactEncrypt,
  getUser,
  type JwkSet,
  type PrivateSigningJwk,
  publicJwks,
  withAuth,
} from 'mcp-auth-middleware';
import { keyPair, serve } from './support/support.js';
import { newPair, untyped } from './support/tokens.js';
import {
  type Answer,
  type Ask,
  asHttp2,
  ask,
  bearer,
  exchange,
  exchangeHttp2,
  guard,
  mint,
  serverKeys,
} from './support/wire.js';

const RESOURCE = 'https://mcp.example/api/mcp';
const JWKS = '/.well-known/jwks.json';
const PRM = '/.well-known/oauth-protected-resource';
const OPENID = '/.well-known/openid-configuration';
const METADATA = `resource_metadata="https://mcp.example${PRM}/api/mcp"`;
const ALLOWED = 'GET, HEAD, OPTIONS';

type Fields = Record<string, string>;

const publicDocument = (body: object): Answer => {
  const text = JSON.stringify(body);
  const headers = {
    'access-control-allow-origin': '*',
    'cache-control': 'public, max-age=300',
    'content-length': String(text.length),
    'content-type': 'application/json',
  };
  return { status: 200, headers, body: text };
};
const refusal = (
  status: number,
  error: string,
  description: string,
  headers: Fields = {},
  more: object = {},
): Answer => {
  const body = JSON.stringify({ error, error_description: description, ...more });
  return {
    status,
    headers: {
      'cache-control': 'no-store',
      'content-length': String(body.length),
      'content-type': 'application/json',
      ...headers,
    },
    body,
  };
};
/** A refusal whose challenge says the same as its body. */
const challenged = (status: number, error: string, description: string, parameters = '', more: object = {}): Answer =>
  refusal(
    status,
    error,
    description,
    { 'www-authenticate': `Bearer error="${error}", error_description="${description}"${parameters}` },
    more,
  );

const noToken = (challenge = 'Bearer'): Answer =>
  refusal(401, 'invalid_token', 'An access token is required', { 'www-authenticate': challenge });
const badToken = (description = 'The access token is invalid', parameters = ''): Answer =>
  challenged(401, 'invalid_token', description, parameters);
const LACKS = 'The access token lacks a required claim or scope';
/** A missing scope is challenged with the scopes there must be; a claim is no scope, so nothing is asked for one. */
const lacking = (missing: string[], parameters: string): Answer =>
  challenged(403, 'insufficient_scope', LACKS, parameters, { missing });
const lackingClaims = (missing: string[]): Answer => refusal(403, 'insufficient_scope', LACKS, {}, { missing });
const badHost = refusal(
  403,
  'invalid_request',
  'This Host is not allowed; the server sets which are with allowedHosts or resource',
);
const badOrigin = refusal(
  403,
  'invalid_request',
  'This Origin is not allowed; the server sets which ones are with cors.origin',
);
const twoTokens = challenged(400, 'invalid_request', 'More than one access token was sent');
const EXPOSED = 'WWW-Authenticate, Mcp-Session-Id, Retry-After';
const badMethod = refusal(405, 'invalid_request', 'This document is read with GET or HEAD', {
  'access-control-allow-origin': '*',
  'access-control-expose-headers': EXPOSED,
  allow: ALLOWED,
});
const documentPreflight: Answer = {
  status: 204,
  body: '',
  headers: {
    'access-control-allow-origin': '*',
    'access-control-allow-methods': ALLOWED,
    'access-control-allow-headers': 'Authorization, *',
    'access-control-max-age': '600',
    allow: ALLOWED,
  },
};
const unavailable = (description: string): Answer =>
  refusal(503, 'temporarily_unavailable', description, { 'retry-after': '1' });
/** The handler's answer: the claims it saw. */
const passed = (claims: object): Answer => {
  const body = JSON.stringify(claims);
  return {
    status: 200,
    headers: { 'content-length': String(Buffer.byteLength(body)), 'content-type': 'application/json' },
    body,
  };
};
const headOf = ({ status, headers }: Answer): Answer => ({ status, headers, body: '' });

type Row = [name: string, request: Ask, expected: Answer];

/** Rows against one server. They are computed late, for they need keys. */
function table(name: string, options: AuthOptions | (() => Promise<AuthOptions>), rows: () => Promise<Row[]>): void {
  it(name, async (t) => {
    const { port } = await guard(t, typeof options === 'function' ? await options() : options);
    for (const [what, request, expected] of await rows()) {
      await t.test(what, async () => assert.deepEqual(await ask(port, request), expected));
    }
  });
}

const now = (): number => Math.floor(Date.now() / 1000);
const serverJwks = async (): Promise<object> => publicJwks(await serverKeys());

describe('the public documents', () => {
  const reads = (path: string, expected: Answer): Row[] => [
    [`GET ${path}`, { path }, expected],
    [`GET ${path} with a query`, { path: `${path}?v=1` }, expected],
    [`HEAD ${path}`, { path, method: 'HEAD' }, headOf(expected)],
    [`OPTIONS ${path}, a preflight or not`, { path, method: 'OPTIONS' }, documentPreflight],
    [
      `OPTIONS ${path} as a browser asks`,
      { path, method: 'OPTIONS', headers: { origin: 'https://evil.example', 'access-control-request-method': 'GET' } },
      documentPreflight,
    ],
    ...['POST', 'PUT', 'PATCH', 'DELETE', 'PROPFIND'].map((method): Row => [
      `${method} ${path} names the methods there are`,
      { path, method },
      badMethod,
    ]),
    [`${path} to any page, whatever its Origin`, { path, headers: { origin: 'https://evil.example' } }, expected],
    [`${path} to those who bring a bad token`, { path, headers: { authorization: 'Bearer x' } }, expected],
  ];

  table('the key set alone, when no resource is set', {}, async () => [
    ...reads(JWKS, publicDocument(await serverJwks())),
    ...[PRM, `${PRM}/api/mcp`, OPENID].map((path): Row => [`${path} is a path as any other`, { path }, noToken()]),
  ]);

  table('at its own path', { jwksPath: '/keys' }, async () => [
    ...reads('/keys', publicDocument(await serverJwks())),
    [`nothing at ${JWKS}`, { path: JWKS }, noToken()],
  ]);

  const prm = { resource: RESOURCE, jwks_uri: `https://mcp.example${JWKS}`, bearer_methods_supported: ['header'] };
  table('the resource metadata at both of its paths (RFC 9728 §3.1)', { resource: RESOURCE }, async () => [
    ...reads(PRM, publicDocument(prm)),
    ...reads(`${PRM}/api/mcp`, publicDocument(prm)),
    [`nothing at ${PRM}/api`, { path: `${PRM}/api` }, noToken(`Bearer ${METADATA}`)],
    [`nothing at ${PRM}/`, { path: `${PRM}/` }, noToken(`Bearer ${METADATA}`)],
    ['no OpenID configuration unless asked for', { path: OPENID }, noToken(`Bearer ${METADATA}`)],
  ]);

  const full: AuthOptions = {
    resource: RESOURCE,
    authorizationServers: ['https://login.example'],
    jwksPath: '/keys',
    openidConfiguration: true,
    requiredClaims: ['email', 'mcp:read'],
    requiredScopes: ['mcp:read', 'mcp:write', 'mcp:read'], // a name twice is said once
  };
  table('the resource metadata and the OpenID configuration with all there is', full, async () => [
    ...reads(
      PRM,
      publicDocument({
        resource: RESOURCE,
        jwks_uri: 'https://mcp.example/keys',
        authorization_servers: ['https://login.example'],
        bearer_methods_supported: ['header'],
        scopes_supported: ['mcp:read', 'mcp:write'],
      }),
    ),
    ...reads(
      OPENID,
      publicDocument({
        issuer: 'https://mcp.example',
        jwks_uri: 'https://mcp.example/keys',
        scopes_supported: ['email', 'mcp:read', 'mcp:write'],
      }),
    ),
  ]);

  const moved: AuthOptions = {
    resource: RESOURCE,
    jwksPath: '/keys',
    jwksUri: 'https://cdn.example/tenant/keys?v=1',
    openidConfiguration: true,
  };
  table('the key set by the URL at which a proxy serves it', moved, async () => [
    ['the key set itself', { path: '/keys' }, publicDocument(await serverJwks())],
    ['in the resource metadata', { path: PRM }, publicDocument({ ...prm, jwks_uri: moved.jwksUri })],
    [
      'in the OpenID configuration',
      { path: OPENID },
      publicDocument({ issuer: 'https://mcp.example', jwks_uri: moved.jwksUri }),
    ],
  ]);

  table('the metadata of a resource at the root once', { resource: 'https://mcp.example' }, async () => [
    ['at the well-known path', { path: PRM }, publicDocument({ ...prm, resource: 'https://mcp.example' })],
    ['in the challenge', {}, noToken(`Bearer resource_metadata="https://mcp.example${PRM}"`)],
  ]);

  it('publish the active key and never a private member', async (t) => {
    const [current, next, old] = [
      (await keyPair('server')).privateJwk,
      (await keyPair('next')).privateJwk,
      (await keyPair('old')).privateJwk,
    ];
    const keys = {
      keys: [
        { ...old, iat: now() - 200 },
        { ...current, iat: now() - 100 },
        { ...next, nbf: now() + 100 },
      ],
    };
    const { port } = await guard(t, { keys, resource: RESOURCE, openidConfiguration: true });
    const { kty, n, e, kid, alg, use } = current;
    assert.deepEqual(JSON.parse((await ask(port, { path: JWKS })).body), { keys: [{ kty, n, e, kid, alg, use }] });
    for (const path of [JWKS, PRM, OPENID, '/mcp']) {
      const answer = JSON.stringify(await ask(port, { path }));
      for (const { d, p, q, dp, dq, qi } of [current, next, old]) {
        for (const member of [d, p, q, dp, dq, qi]) assert(!answer.includes(member), path);
      }
    }
  });
});

describe('who gets to the handler', () => {
  const claims = { iat: now(), exp: now() + 600, sub: '1', name: 'Zoë' }; // in the order of encryptToken
  table('by default', {}, async () => [
    ['no token', {}, noToken()],
    ['HEAD without a token', { method: 'HEAD' }, headOf(noToken())],
    ['another scheme', { headers: { authorization: 'Basic QTpC' } }, noToken()],
    ['a token in a field of its own name', { headers: { 'x-token': await mint(claims) } }, noToken()],
    ['a valid token', { headers: await bearer(claims) }, passed(claims)],
    ['a valid token, POST', { method: 'POST', body: '{}', headers: await bearer(claims) }, passed(claims)],
    [
      'HEAD with a valid token',
      { method: 'HEAD', headers: await bearer(claims) },
      { status: 200, headers: { 'content-type': 'application/json' }, body: '' },
    ],
    ['a bad token', { headers: { authorization: 'Bearer x' } }, badToken()],
    ['HEAD with a bad token', { method: 'HEAD', headers: { authorization: 'Bearer x' } }, headOf(badToken())],
    ['OPTIONS that asks nothing', { method: 'OPTIONS' }, noToken()],
    ['OPTIONS with a valid token', { method: 'OPTIONS', headers: await bearer(claims) }, passed(claims)],
    [
      'an Origin, when none is allowed',
      { headers: { ...(await bearer(claims)), origin: 'https://app.example' } },
      badOrigin,
    ],
    ['the Origin null', { headers: { ...(await bearer(claims)), origin: 'null' } }, badOrigin],
    [
      'an Origin that agrees with Host',
      { headers: { ...(await bearer(claims)), host: 'rebound.example', origin: 'http://rebound.example' } },
      badHost,
    ],
  ]);

  table('anonymous', { anonymous: true, requiredClaims: ['email'], requiredScopes: ['read'] }, async () => [
    ['no token', {}, passed({})],
    ['an empty field', { headers: { authorization: '' } }, passed({})],
    ['another scheme', { headers: { authorization: 'Basic QTpC' } }, passed({})],
    [
      'a scheme without a token is a bad token',
      { headers: { authorization: 'Bearer' } },
      badToken(undefined, ', scope="read"'),
    ],
    ['a bad token', { headers: { authorization: 'Bearer x' } }, badToken(undefined, ', scope="read"')],
    ['what is required of a token', { headers: await bearer({ email: 'a@b' }) }, lacking(['read'], ', scope="read"')],
    [
      'a token with it',
      { headers: await bearer({ ...claims, email: 'a@b', scope: 'read' }) },
      passed({ ...claims, email: 'a@b', scope: 'read' }),
    ],
  ]);

  const publicPaths = ['/healthz', '/a%2fb', '//twice', '/a/../b', '/Caf%C3%A9', '/x;y=1', '/'];
  table('public paths, exactly', { publicPaths }, async () => [
    ...publicPaths.map((path): Row => [path, { path }, passed({})]),
    ...publicPaths.map((path): Row => [`${path}?query`, { path: `${path}?a=/&b=//` }, passed({})]),
    ['a bad token is ignored', { path: '/healthz', headers: { authorization: 'Bearer x' } }, passed({})],
    ['a good token is ignored', { path: '/healthz', headers: await bearer(claims) }, passed({})],
    ['two tokens are ignored', { path: '/healthz', headers: { authorization: ['Bearer x', 'Bearer y'] } }, passed({})],
    ...[
      '/healthz/',
      '//healthz',
      '/healthz;',
      '/Healthz',
      '/health%7a',
      '/./healthz',
      '/x/../healthz',
      '/healthz/..',
      '/a/b',
      '/b',
      '/a%2Fb',
      '/twice',
      '/Caf%c3%a9',
      '/x',
    ].map((path): Row => [`not ${path}`, { path }, noToken()]),
  ]);

  const required: AuthOptions = {
    requiredClaims: ['email', 'org'],
    requiredScopes: ['mcp:read', 'mcp:write'],
    resource: RESOURCE,
  };
  const more = `, scope="mcp:read mcp:write", ${METADATA}`;
  table('required claims and scopes', required, async () => [
    ['no token: the scopes are in the challenge', {}, noToken(`Bearer scope="mcp:read mcp:write", ${METADATA}`)],
    [
      'a bad token: as well',
      { headers: { authorization: 'Bearer x' } },
      badToken(undefined, `, scope="mcp:read mcp:write", ${METADATA}`),
    ],
    ['nothing of it', { headers: await bearer({}) }, lacking(['email', 'org', 'mcp:read', 'mcp:write'], more)],
    [
      'a claim that is null',
      { headers: await bearer({ email: null, org: 'o', scope: 'mcp:read mcp:write' }) },
      lackingClaims(['email']),
    ],
    [
      'a scope that only begins so',
      { headers: await bearer({ email: 'e', org: 'o', scope: 'mcp:read mcp:writes' }) },
      lacking(['mcp:write'], more),
    ],
    [
      'a scope in other case',
      { headers: await bearer({ email: 'e', org: 'o', scope: 'mcp:read MCP:WRITE' }) },
      lacking(['mcp:write'], more),
    ],
    [
      'scopes that are no string',
      { headers: await bearer({ email: 'e', org: 'o', scope: { 'mcp:read': true }, scp: 7 }) },
      lacking(['mcp:read', 'mcp:write'], more),
    ],
  ]);

  it('takes a claim that is false, zero or empty as present, and scopes in all three forms', async (t) => {
    const { port } = await guard(t, required);
    for (const scopes of [
      { scope: 'mcp:write x  mcp:read' },
      { scp: 'mcp:read mcp:write' },
      { scp: ['mcp:write', 'mcp:read'] },
    ]) {
      for (const email of ['', false, 0]) {
        const { status } = await ask(port, { headers: await bearer({ email, org: [], ...scopes }) });
        assert.equal(status, 200, JSON.stringify({ email, scopes }));
      }
    }
  });

  it('takes no claim from a prototype', async (t) => {
    const { port } = await guard(t, { requiredClaims: ['constructor', '__proto__', 'toString'] });
    assert.deepEqual(JSON.parse((await ask(port, { headers: await bearer({ sub: '1' }) })).body).missing, [
      'constructor',
      '__proto__',
      'toString',
    ]);
    const token = compactEncrypt(
      Buffer.from('{"constructor":1,"__proto__":2,"toString":3}'),
      (await keyPair()).publicJwk,
    );
    assert.equal((await ask(port, { headers: { authorization: `Bearer ${token}` } })).status, 200);
  });

  it('names a required claim in the body only, whatever its name', async (t) => {
    const requiredClaims = ['"quoted"', 'first name', 'https://ns.example/org', 'größe'];
    const { port } = await guard(t, { requiredClaims });
    const { headers, body } = await ask(port, { headers: await bearer({}) });
    assert.equal(headers['www-authenticate'], undefined);
    assert.deepEqual(JSON.parse(body).missing, ['"quoted"', 'first name', 'https://ns.example/org', 'größe']);
  });

  it('challenges with scopes that a client can ask for, and for nothing else', async (t) => {
    const { port } = await guard(t, required);
    const scope = 'mcp:read mcp:write';
    const rows: [name: string, claims: object, missing: string[], asked: string | undefined][] = [
      ['all', {}, ['email', 'org', 'mcp:read', 'mcp:write'], scope],
      ['both claims', { scope }, ['email', 'org'], undefined],
      ['one claim', { scope, org: 1 }, ['email'], undefined],
      ['a claim that is null', { scope, org: 1, email: null }, ['email'], undefined],
      ['one scope', { scope: 'mcp:write', email: 1, org: 1 }, ['mcp:read'], scope],
      ['a claim and a scope', { scope: 'mcp:write', org: 1 }, ['email', 'mcp:read'], scope],
      ['scopes in other places', { roles: scope, email: 1, org: 1 }, ['mcp:read', 'mcp:write'], scope],
    ];
    for (const [name, claims, missing, asked] of rows) {
      const response = await fetch(`http://127.0.0.1:${port}/mcp`, { headers: await bearer(claims) });
      // As the official client reads it, which asks its authorization server for just this.
      const { scope: read, error, resourceMetadataUrl } = extractWWWAuthenticateParams(response);
      assert.deepEqual([response.status, read], [403, asked], name);
      assert.equal(response.headers.has('www-authenticate'), asked !== undefined, name);
      if (asked !== undefined) {
        assert.equal(error, 'insufficient_scope');
        assert.equal(resourceMetadataUrl?.href, `https://mcp.example${PRM}/api/mcp`);
      }
      assert.deepEqual(JSON.parse(await response.text()).missing, missing, name);
    }
    const open = await guard(t, { requiredClaims: ['mcp:read'] });
    const claimed = await ask(open.port, { headers: await bearer({}) });
    assert.deepEqual(
      [claimed.status, claimed.headers['www-authenticate']],
      [403, undefined],
      'a claim named like a scope',
    );
  });

  it('takes scopes from arrays as well, as some issuers send them', async (t) => {
    const { port } = await guard(t, { requiredScopes: ['mcp:read', 'mcp:write'] });
    const rows: [claims: object, status: number][] = [
      [{ scope: ['mcp:read', 'mcp:write'] }, 200],
      [{ scope: ['mcp:write', 'x', 'mcp:read'] }, 200],
      [{ scope: ['mcp:read mcp:write'] }, 403], // one scope, of which no token is named so
      [{ scope: ['mcp:read'] }, 403],
      [{ scope: [] }, 403],
      [{ scope: ['mcp:read', 1, 'mcp:write'] }, 403],
      [{ scope: [['mcp:read', 'mcp:write']] }, 403],
      [{ scope: { 'mcp:read': 1, 'mcp:write': 1 } }, 403],
      [{ scope: ['x'], scp: ['mcp:read', 'mcp:write'] }, 403],
      [{ scp: ['mcp:read', 'mcp:write'] }, 200],
    ];
    for (const [claims, status] of rows)
      assert.equal((await ask(port, { headers: await bearer(claims) })).status, status, JSON.stringify(claims));
  });

  // No shared cache knows the field to hold a token (RFC 9111 §3.5).
  const varying = (answer: Answer): Answer => ({ ...answer, headers: { ...answer.headers, vary: 'x-mcp-token' } });
  table('another field for the token', { tokenHeader: 'X-MCP-Token' }, async () => [
    ['Authorization is not read', { headers: await bearer(claims) }, varying(noToken())],
    ['the field is', { headers: { 'x-mcp-token': (await bearer(claims)).authorization } }, varying(passed(claims))],
    ['in any case', { headers: { 'X-Mcp-ToKeN': (await bearer(claims)).authorization } }, varying(passed(claims))],
    [
      'with whatever is in Authorization',
      { headers: { authorization: 'Basic QTpC', 'x-mcp-token': (await bearer(claims)).authorization } },
      varying(passed(claims)),
    ],
    ['with the same syntax', { headers: { 'x-mcp-token': await mint(claims) } }, varying(noToken())],
    ['once', { headers: { 'x-mcp-token': [(await bearer(claims)).authorization, 'Bearer x'] } }, varying(twoTokens)],
  ]);

  const times: AuthOptions = { clockTolerance: 0, audience: ['https://mcp.example', 'urn:mcp'], maxTokenAge: 300 };
  const aud = 'urn:mcp';
  table('what is told of an authentic token', times, async () => [
    [
      'expired',
      { headers: await bearer({ aud, iat: now() - 100, exp: now() - 1 }) },
      badToken('The access token has expired'),
    ],
    [
      'too old',
      { headers: await bearer({ aud, iat: now() - 400, exp: now() + 100 }) },
      badToken('The access token has expired'),
    ],
    [
      'not yet valid',
      { headers: await bearer({ aud, nbf: now() + 100 }) },
      badToken('The access token is not valid yet'),
    ],
    [
      'issued in the future',
      { headers: await bearer({ aud, iat: now() + 100, exp: now() + 200 }) },
      badToken('The access token is not valid yet'),
    ],
    ['without an audience', { headers: await bearer({}) }, badToken('The access token is for another audience')],
    [
      'for another audience',
      { headers: await bearer({ aud: ['https://mcp.example/', 'urn:MCP'] }) },
      badToken('The access token is for another audience'),
    ],
  ]);

  table('a resource is the audience of encrypted tokens that name one', { resource: RESOURCE }, async () => [
    ['none', { headers: await bearer(claims) }, passed(claims)],
    [
      'this',
      { headers: await bearer({ ...claims, aud: ['x', RESOURCE] }) },
      passed({ ...claims, aud: ['x', RESOURCE] }),
    ],
    [
      'another',
      { headers: await bearer({ ...claims, aud: 'https://mcp.example/' }) },
      badToken('The access token is for another audience', `, ${METADATA}`),
    ],
  ]);

  for (const resource of ['https://mcp.example', 'https://mcp.example/', 'https://MCP.example:443']) {
    const metadata = `, resource_metadata="https://mcp.example${PRM}"`;
    const foreign = badToken('The access token is for another audience', metadata);
    table(`a resource without a path is named with the slash or without: ${resource}`, { resource }, async () => [
      ...(await Promise.all(
        [resource, 'https://mcp.example', 'https://mcp.example/'].map(async (aud): Promise<Row> => [
          `for ${aud}`,
          { headers: await bearer({ ...claims, aud: ['x', aud] }) },
          passed({ ...claims, aud: ['x', aud] }),
        ]),
      )),
      ...(await Promise.all(
        [
          'https://mcp.example//',
          'https://mcp.example/mcp',
          'http://mcp.example',
          'https://mcp.example:8443',
          'https://mcp.example?',
          'mcp.example',
          'HTTPS://mcp.example',
          ' https://mcp.example',
          '',
        ].map(async (aud): Promise<Row> => [`not for ${aud}`, { headers: await bearer({ aud }) }, foreign]),
      )),
    ]);
  }

  it('a resource with a path, and an audience that is given, are named exactly', async (t) => {
    for (const [options, aud, status] of [
      [{ resource: 'https://mcp.example/mcp' }, 'https://mcp.example/mcp', 200],
      [{ resource: 'https://mcp.example/mcp' }, 'https://mcp.example/mcp/', 401],
      [{ resource: 'https://mcp.example/mcp/' }, 'https://mcp.example/mcp', 401],
      [{ resource: 'https://mcp.example/?tenant=1' }, 'https://mcp.example', 401],
      [{ resource: 'https://mcp.example', audience: 'urn:mcp' }, 'https://mcp.example', 401],
      [{ resource: 'https://mcp.example', audience: 'https://mcp.example' }, 'https://mcp.example/', 401],
      [{ audience: 'https://mcp.example/' }, 'https://mcp.example', 401],
      [{ audience: 'https://mcp.example/' }, 'https://mcp.example/', 200],
    ] as const) {
      const { port } = await guard(t, options);
      assert.equal(
        (await ask(port, { headers: await bearer({ aud }) })).status,
        status,
        JSON.stringify([options, aud]),
      );
    }
  });

  it('a resource is the audience of signed tokens, with the slash and without where it has no path', async (t) => {
    const { publicKey, privateKey } = newPair('ed25519');
    const jwks = untyped<JwkSet>({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'k' }] });
    const key = untyped<PrivateSigningJwk>({ ...privateKey.export({ format: 'jwk' }), kid: 'k' });
    const trustedIssuers = [{ issuer: 'i', jwks }];
    for (const [options, audience, status] of [
      [{ resource: 'https://mcp.example' }, 'https://mcp.example/', 200],
      [{ resource: 'https://mcp.example/' }, 'https://mcp.example', 200],
      [{ resource: 'https://mcp.example' }, 'https://mcp.example/mcp', 401],
      [{ resource: 'https://mcp.example/mcp' }, 'https://mcp.example/mcp', 200],
      [{ resource: 'https://mcp.example/mcp' }, 'https://mcp.example', 401],
      [{ resource: 'https://mcp.example', audience: 'urn:mcp' }, 'https://mcp.example', 401],
      [{ resource: 'https://mcp.example', audience: 'urn:mcp' }, 'urn:mcp', 200],
    ] as const) {
      const { port } = await guard(t, { ...options, trustedIssuers });
      const token = await mint({ sub: 'ada' }, { sign: { key, issuer: 'i', audience } });
      const { status: answered } = await ask(port, { headers: { authorization: `Bearer ${token}` } });
      assert.equal(answered, status, JSON.stringify([options, audience]));
    }
  });

  table('the origin of the resource, without cors', { resource: RESOURCE }, async () => [
    ['is welcome', { headers: { ...(await bearer(claims)), origin: 'https://mcp.example' } }, passed(claims)],
    ...[
      'http://mcp.example',
      'https://mcp.example:8443',
      'https://mcp.example.evil.example',
      'https://MCP.example',
      'https://mcp.example/',
      'null',
      '',
    ].map((origin): Row => [`not "${origin}"`, { headers: { origin } }, badOrigin]),
  ]);
});

it('what the last request on a socket brought is judged again, and nothing like it passes for it', async (t) => {
  const iat = Math.floor(Date.now() / 1000);
  let now = iat;
  const { port } = await guard(t, { now: () => now, clockTolerance: 0 }, (_req, res) => {
    res.end(String(getUser().sub));
  });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const sockets = new Set<object>();
  agent.on('free', (socket) => sockets.add(socket));
  const [ada, bob] = [await mint({ sub: 'ada', iat, exp: iat + 60 }), await mint({ sub: 'bob', iat, exp: iat + 600 })];
  const get = async (authorization?: string): Promise<string> => {
    const { status, body } = await ask(port, {
      agent,
      ...(authorization !== undefined && { headers: { authorization } }),
    });
    return status === 200 ? body : String(status);
  };
  for (let i = 0; i < 3; i += 1) assert.equal(await get(`Bearer ${ada}`), 'ada');
  const others: [field: string | undefined, expected: string][] = [
    [undefined, '401'],
    [`Basic ${ada}`, '401'],
    [`Bearer ${ada}A`, '401'],
    [`Bearer ${ada.slice(0, -1)}`, '401'],
    [`Bearer ${ada}, Bearer ${ada}`, '401'],
    [`bearer  ${ada}`, 'ada'],
    [`Bearer ${bob}`, 'bob'],
    [`Bearer ${bob}`, 'bob'],
    [`Bearer ${ada}`, 'ada'],
  ];
  for (const [field, expected] of others) assert.equal(await get(field), expected, field?.slice(0, 8) ?? 'nothing');
  now = iat + 60;
  assert.equal(await get(`Bearer ${ada}`), '401');
  assert.equal(await get(`Bearer ${bob}`), 'bob');
  assert.equal(sockets.size, 1);
});

describe('a bad token', () => {
  /** A JWE whose header, content encryption key and parts are the test's. */
  async function forge({
    header = {},
    cek = randomBytes(32),
    oaepHash = 'sha256',
    oaepLabel,
    padding = constants.RSA_PKCS1_OAEP_PADDING,
    seal = cek,
    plaintext = '{}',
  }: {
    header?: object;
    cek?: Buffer;
    oaepHash?: string;
    oaepLabel?: Buffer;
    padding?: number;
    seal?: Buffer;
    plaintext?: string | Buffer;
  } = {}): Promise<string> {
    const { publicJwk } = await keyPair();
    const aad = Buffer.from(
      JSON.stringify({ alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: publicJwk.kid, ...header }),
    ).toString('base64url');
    const key = createPublicKey({ key: { kty: 'RSA', n: publicJwk.n, e: publicJwk.e }, format: 'jwk' });
    const encryptedKey = publicEncrypt(
      { key, padding, ...(padding === constants.RSA_PKCS1_OAEP_PADDING && { oaepHash, oaepLabel }) },
      cek,
    );
    const iv = randomBytes(12);
    const cipher = createCipheriv('aes-256-gcm', seal, iv, { authTagLength: 16 }).setAAD(Buffer.from(aad));
    const ciphertext = Buffer.concat([cipher.update(plaintext), cipher.final()]);
    return [aad, ...[encryptedKey, iv, ciphertext, cipher.getAuthTag()].map((part) => part.toString('base64url'))].join(
      '.',
    );
  }
  const header = (value: object | string): string =>
    Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
  const flip = (text: string, at: number): string =>
    text.slice(0, at) + (text[at] === 'A' ? 'B' : 'A') + text.slice(at + 1);

  async function badTokens(): Promise<Record<string, string>> {
    const { publicJwk, privateJwk } = await keyPair();
    const stranger = (await keyPair('stranger')).publicJwk;
    const good = await mint({ sub: '1' });
    const [h = '', k = '', iv = '', c = '', tag = ''] = good.split('.');
    const base = { alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: publicJwk.kid };
    const withHeader = (value: object | string): string => [header(value), k, iv, c, tag].join('.');
    const plain = (text: string | Buffer, more = {}): string => compactEncrypt(Buffer.from(text), publicJwk, more);
    return {
      nothing: '',
      'one letter': 'x',
      dots: '....',
      'four parts': [h, k, iv, c].join('.'),
      'six parts': `${good}.`,
      'a JWT': `${header({ alg: 'none' })}.e30.`,
      padding: `${good}==`,
      'another alphabet': `${h}.${k}.${iv}.${c}.++++++++++++++++++++++`,
      'a character that is not ASCII': `${good}\xe9`,
      'a stray bit': `${good.slice(0, -1)}${String.fromCharCode(good.charCodeAt(good.length - 1) + 1)}`,
      'a header that is no JSON': withHeader('{'),
      'a header that is an array': withHeader('[]'),
      'a header with a BOM': withHeader(`\ufeff${JSON.stringify(base)}`),
      ...Object.fromEntries(
        [
          'none',
          'dir',
          'RSA1_5',
          'RSA-OAEP',
          'RSA-OAEP-512',
          'A256KW',
          'rsa-oaep-256',
          'RS256',
          'HS256',
          '',
          1,
          null,
        ].map((alg) => [`alg ${alg}`, withHeader({ ...base, alg })]),
      ),
      ...Object.fromEntries(
        ['A128GCM', 'A256CBC-HS512', 'a256gcm', '', null].map((enc) => [`enc ${enc}`, withHeader({ ...base, enc })]),
      ),
      zip: await forge({ header: { zip: 'DEF' } }),
      crit: await forge({ header: { crit: ['exp'] } }),
      'an empty crit': await forge({ header: { crit: [] } }),
      'an unknown kid': await forge({ header: { kid: 'other' } }),
      'a kid that is a number': await forge({ header: { kid: 1 } }),
      'a kid that is null': await forge({ header: { kid: null } }),
      'a kid of a prototype': await forge({ header: { kid: '__proto__' } }),
      'no encrypted key': [h, '', iv, c, tag].join('.'),
      'a short encrypted key': [h, k.slice(0, -4), iv, c, tag].join('.'),
      'a long encrypted key': [h, `${k}AAAA`, iv, c, tag].join('.'),
      'an encrypted key of zeros': [h, 'A'.repeat(k.length), iv, c, tag].join('.'),
      'a short IV': [h, k, iv.slice(4), c, tag].join('.'),
      'a short tag': [h, k, iv, c, tag.slice(0, 16)].join('.'),
      'a 4-octet tag': [h, k, iv, c, tag.slice(0, 6)].join('.'),
      'a changed encrypted key': [h, flip(k, 40), iv, c, tag].join('.'),
      'a changed IV': [h, k, flip(iv, 3), c, tag].join('.'),
      'a changed ciphertext': [h, k, iv, flip(c, 3), tag].join('.'),
      'a changed tag': [h, k, iv, c, flip(tag, 3)].join('.'),
      'another key under this kid': compactEncrypt(Buffer.from('{}'), { ...stranger, kid: publicJwk.kid }),
      'another key': compactEncrypt(Buffer.from('{}'), stranger),
      'OAEP with SHA-1': await forge({ oaepHash: 'sha1' }),
      'OAEP with a label': await forge({ oaepLabel: Buffer.from('x') }),
      'PKCS #1 v1.5': await forge({ padding: constants.RSA_PKCS1_PADDING }),
      ...Object.fromEntries(
        await Promise.all(
          [0, 16, 31, 33, 64].map(
            async (octets) =>
              [`a CEK of ${octets} octets`, await forge({ cek: randomBytes(octets), seal: randomBytes(32) })] as const,
          ),
        ),
      ),
      'no plaintext': plain(''),
      'a plaintext that is no JSON': plain('sub=1'),
      'an array': plain('[]'),
      'a string': plain('"x"'),
      null: plain('null'),
      'bad UTF-8': plain(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])),
      'a BOM': plain('\ufeff{}'),
      'a number JSON cannot carry': plain('{"a":1e999}'),
      'too deep': plain(`{"a":${'['.repeat(40)}${']'.repeat(40)}}`),
      'too many values': plain(JSON.stringify({ a: Array(1001).fill(0) })),
      ...Object.fromEntries(
        [
          { exp: '1' },
          { exp: null },
          { nbf: [] },
          { iat: {} },
          { iss: 1 },
          { sub: 1 },
          { jti: null },
          { aud: 1 },
          { aud: ['a', 1] },
          { exp: now() + 100, iat: now() + 200 },
        ].map((claims) => [`claims ${JSON.stringify(claims)}`, plain(JSON.stringify(claims))]),
      ),
      'a nested token': plain(`${header({ alg: 'none' })}.${header({ sub: '1' })}.`, { cty: 'JWT' }),
      'claims that say they are nested': plain('{"sub":"1"}', { cty: 'jwt' }),
      'too long': 'x'.repeat(16_385),
      'too long a good one': plain(JSON.stringify({ a: 'x'.repeat(13_000) })),
      'a private key': header(privateJwk),
      'two in one field': `${good}, Bearer ${good}`,
      'two with a space': `${good} ${good}`,
      'a parameter after it': `${good};v=1`,
      quoted: `"${good}"`,
      'a scheme twice': `Bearer ${good}`,
      'percent-encoded': good.replace('.', '%2E'),
    };
  }

  for (const [name, options] of Object.entries<AuthOptions>({
    'with nothing set': {},
    'with everything set': {
      resource: RESOURCE,
      requiredScopes: ['read'],
      requiredClaims: ['email'],
      cors: { origin: '*' },
      anonymous: true,
    },
  })) {
    it(`is refused with the same octets whatever is wrong with it, ${name}`, async (t) => {
      let reached = 0;
      const { server, port } = await guard(t, options, (_req, res) => {
        reached += 1;
        res.end();
      });
      Object.assign(server, { maxHeaderSize: 65_536 });
      const seen = new Map<string, string[]>();
      const tokens = Object.entries(await badTokens());
      assert(tokens.length > 75);
      for (const [kind, token] of tokens) {
        const raw = await exchange(
          port,
          `POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\nConnection: close\r\n\r\n`,
        );
        const answer = raw.replace(/\r\nDate: [^\r]+/, '');
        seen.set(answer, [...(seen.get(answer) ?? []), kind]);
      }
      assert.equal(seen.size, 1, JSON.stringify([...seen], null, 1));
      assert.match([...seen.keys()][0] ?? '', /^HTTP\/1\.1 401 Unauthorized\r\n/);
      assert.equal(reached, 0);
    });
  }
});

describe('when it cannot be decided', () => {
  it('answers 503 past maxPending, and not to those before', async (t) => {
    const { port } = await guard(t, { maxPending: 0 });
    const lanes = Math.max(1, Math.min(availableParallelism() + 1, Number(process.env.UV_THREADPOOL_SIZE ?? 4) - 1));
    const tokens = await Promise.all(Array.from({ length: lanes + 2 }, (_, index) => mint({ sub: `user ${index}` })));
    // All requests are in one packet, so that the last ones are decided while the first are decrypted.
    const requests = tokens.map(
      (token, index) =>
        `GET /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\n` +
        `${index === lanes + 1 ? 'Connection: close\r\n' : ''}\r\n`,
    );
    const answers = await exchange(port, requests.join(''));
    assert.deepEqual(
      [...answers.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(([, status]) => Number(status)),
      [...Array.from({ length: lanes }, () => 200), 503, 503],
    );
    const expected = unavailable('Too many new access tokens are waiting; try again');
    assert(answers.endsWith(`\r\n\r\n${expected.body}`));
    assert.match(answers, /\r\nretry-after: 1\r\n/);
    assert.equal(
      (await ask(port, { headers: { authorization: `Bearer ${tokens.at(-1)}` } })).status,
      200,
      'afterwards it is served',
    );
  });

  it('answers 503 while no key is valid', async (t) => {
    const exp = now() + 100;
    let clock = exp - 1;
    const { port } = await guard(t, { keys: { keys: [{ ...(await keyPair()).privateJwk, exp }] }, now: () => clock });
    const request = { headers: await bearer({ sub: '1', iat: 0, exp: exp + 1000 }) };
    assert.equal((await ask(port, request)).status, 200);
    clock = exp;
    assert.deepEqual(await ask(port, request), unavailable('No decryption key is valid at this time; try again'));
    const nothing = unavailable('No decryption key is valid at this time; try again');
    Object.assign(nothing.headers, { 'access-control-allow-origin': '*', 'access-control-expose-headers': EXPOSED });
    assert.deepEqual(await ask(port, { path: JWKS }), nothing, 'an empty set would be kept by producers');
    assert.deepEqual(await ask(port, { path: JWKS, method: 'HEAD' }), headOf(nothing));
    assert.deepEqual(await ask(port, { path: JWKS, method: 'OPTIONS' }), documentPreflight);
    assert.deepEqual(await ask(port), noToken());
  });

  it('answers 503 when the keys of the issuer were never read', async (t) => {
    const down = await guard(t, {});
    down.server.close();
    const jwks = new URL(`http://127.0.0.1:${down.port}/jwks`);
    const { port } = await guard(t, { trustedIssuers: [{ issuer: 'https://idp.example', jwks }], audience: 'a' });
    const inner = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
    const token = compactEncrypt(
      Buffer.from(`${inner({ alg: 'ES256' })}.${inner({ iss: 'https://idp.example' })}.AAAA`),
      (await keyPair()).publicJwk,
      {
        cty: 'JWT',
      },
    );
    assert.deepEqual(
      await ask(port, { headers: { authorization: `Bearer ${token}` } }),
      unavailable('The keys of the token issuer cannot be read; try again'),
    );
    assert.deepEqual(
      await ask(port, { headers: await bearer({ sub: '1' }) }),
      badToken(),
      'an unsigned token needs no issuer to be refused',
    );
  });
});

describe('the order of the rows', () => {
  const evil = { origin: 'https://evil.example' };
  const preflight = { 'access-control-request-method': 'POST' };
  const options: AuthOptions = {
    publicPaths: [JWKS, '/open'],
    cors: { origin: ['https://app.example'] },
    requiredClaims: ['email'],
    clockTolerance: 0,
  };
  const cases: [name: string, request: () => Promise<Ask>, status: number][] = [
    ['a document before the Origin and before public paths', async () => ({ path: JWKS, headers: evil }), 200],
    [
      'a document before a preflight with a foreign Origin',
      async () => ({ path: JWKS, method: 'OPTIONS', headers: { ...evil, ...preflight } }),
      204,
    ],
    ['the Origin before a preflight', async () => ({ method: 'OPTIONS', headers: { ...evil, ...preflight } }), 403],
    ['the Origin before public paths', async () => ({ path: '/open', headers: evil }), 403],
    ['the Origin before no token', async () => ({ headers: evil }), 403],
    [
      'a preflight before public paths',
      async () => ({ path: '/open', method: 'OPTIONS', headers: { origin: 'https://app.example', ...preflight } }),
      204,
    ],
    [
      'a preflight before two tokens',
      async () => ({
        method: 'OPTIONS',
        headers: { origin: 'https://app.example', ...preflight, authorization: ['Bearer x', 'Bearer y'] },
      }),
      204,
    ],
    [
      'a public path before two tokens',
      async () => ({ path: '/open', headers: { authorization: ['Bearer x', 'Bearer y'] } }),
      200,
    ],
    [
      'two tokens before either is looked at',
      async () => {
        const { authorization } = await bearer({ email: 'e' });
        return { headers: { authorization: [authorization, 'Bearer x'] } };
      },
      400,
    ],
    ['expiry before missing claims', async () => ({ headers: await bearer({ iat: 1, exp: 2 }) }), 401],
    ['missing claims', async () => ({ headers: await bearer({}) }), 403],
  ];
  it('is the contract’s', async (t) => {
    const { port } = await guard(t, options);
    for (const [name, request, status] of cases) assert.equal((await ask(port, await request())).status, status, name);
  });
});

// From here on requests are octets, and of the answer mostly the status counts.
const CLOSE = 'Connection: close\r\n';
const OPEN: AuthOptions = { publicPaths: ['/open'] };
const statusOf = (answer: string): number => Number(/^HTTP\/1\.1 (\d{3}) /.exec(answer)?.[1]);

it('two Origin fields are refused in either order, though each of them may be allowed', async (t) => {
  const { port } = await guard(t, { cors: { origin: ['https://app.example', 'https://other.example'] } });
  const answers = async (...origins: string[]): Promise<number> => {
    const fields = origins.map((origin) => `Origin: ${origin}\r\n`).join('');
    const token = await mint({ sub: 'ada' });
    return statusOf(
      await exchange(
        port,
        `GET / HTTP/1.1\r\nHost: localhost\r\n${fields}Authorization: Bearer ${token}\r\n${CLOSE}\r\n`,
      ),
    );
  };
  const [app, other, evil] = ['https://app.example', 'https://other.example', 'https://evil.example'];
  assert.deepEqual([await answers(app), await answers(evil)], [200, 403]);
  for (const origins of [
    [app, evil],
    [evil, app],
    [app, other],
    [app, app],
  ])
    assert.equal(await answers(...origins), 400, origins.join(' then '));
});

describe('the field with the token', () => {
  const rows: [name: string, fields: (token: string) => string, status: number][] = [
    ['the plain form', (token) => `Authorization: Bearer ${token}`, 200],
    ['the scheme in lower case', (token) => `Authorization: bearer ${token}`, 200],
    ['the scheme in mixed case', (token) => `authorization: bEaReR ${token}`, 200],
    ['several spaces (RFC 9110 §11.4: 1*SP)', (token) => `Authorization: Bearer    ${token}`, 200],
    ['whitespace around the value, which is no part of it', (token) => `Authorization: \t Bearer ${token} \t `, 200],
    ['no whitespace around the value', (token) => `Authorization:Bearer ${token}`, 200],
    ['a tab after the scheme', (token) => `Authorization: Bearer\t${token}`, 401],
    ['a space, then a tab', (token) => `Authorization: Bearer \t${token}`, 401],
    ['no space after the scheme', (token) => `Authorization: Bearer${token}`, 401],
    ['a comma after the scheme', (token) => `Authorization: Bearer,${token}`, 401],
    ['an equals sign after the scheme', (token) => `Authorization: Bearer=${token}`, 401],
    ['the token alone', (token) => `Authorization: ${token}`, 401],
    ['the scheme alone', () => 'Authorization: Bearer', 401],
    ['the scheme and spaces', () => 'Authorization: Bearer   ', 401],
    ['an empty field', () => 'Authorization:', 401],
    ['another scheme', (token) => `Authorization: JWE ${token}`, 401],
    ['a scheme that begins with Bearer', (token) => `Authorization: Bearer-X ${token}`, 401],
    ['two tokens with a space', (token) => `Authorization: Bearer ${token} ${token}`, 401],
    ['two tokens with a comma', (token) => `Authorization: Bearer ${token},${token}`, 401],
    ['two credentials with a comma', (token) => `Authorization: Bearer ${token}, Bearer ${token}`, 401],
    ['two schemes with a comma', (token) => `Authorization: Basic QTpC, Bearer ${token}`, 401],
    ['a parameter', (token) => `Authorization: Bearer token=${token}`, 401],
    ['quotes', (token) => `Authorization: Bearer "${token}"`, 401],
    ['a tab in the token', (token) => `Authorization: Bearer ${token.replace('.', '\t.')}`, 401],
    ['a space in the token', (token) => `Authorization: Bearer ${token.replace('.', ' .')}`, 401],
    ['a no-break space before the token', (token) => `Authorization: Bearer \xa0${token}`, 401],
    ['a no-break space for the space', (token) => `Authorization: Bearer\xa0${token}`, 401],
    ['a letter that is not ASCII', (token) => `Authorization: Bearer ${token}\xe9`, 401],
    [
      'a long s for the scheme’s letter',
      (token) => `Authorization: Bearer\u017f ${token}`.replace('\u017f', '\xc5\xbf'),
      401,
    ],
    ['two fields', (token) => `Authorization: Bearer ${token}\r\nAuthorization: Bearer ${token}`, 400],
    ['two fields, in any case', (token) => `Authorization: Bearer ${token}\r\naUTHORIZATION: Bearer ${token}`, 400],
    [
      'two fields, the second of another scheme',
      (token) => `Authorization: Bearer ${token}\r\nAuthorization: Basic QTpC`,
      400,
    ],
    [
      'two fields, the first of another scheme',
      (token) => `Authorization: Basic QTpC\r\nAuthorization: Bearer ${token}`,
      400,
    ],
    ['two fields, one empty', (token) => `Authorization:\r\nAuthorization: Bearer ${token}`, 400],
    ['two fields that are equal and bad', () => 'Authorization: Bearer x\r\nAuthorization: Bearer x', 400],
    [
      'two fields, far apart',
      (token) => `Authorization: Bearer ${token}\r\n${'X: y\r\n'.repeat(50)}Authorization: Bearer ${token}`,
      400,
    ],
    ['a folded value (RFC 9112 §5.2)', (token) => `Authorization: Bearer\r\n ${token}`, 400],
    ['a folded token', (token) => `Authorization: Bearer ${token.slice(0, 50)}\r\n\t${token.slice(50)}`, 400],
    ['a space before the colon', (token) => `Authorization : Bearer ${token}`, 400],
    ['a tab before the colon', (token) => `Authorization\t: Bearer ${token}`, 400],
    [
      'a space before the name, which folds it into the field above',
      (token) => `X: y\r\n Authorization: Bearer ${token}`,
      400,
    ],
    ['a carriage return in the value', (token) => `Authorization: Bearer ${token}\rX: y`, 400],
    ['a NUL in the value', (token) => `Authorization: Bearer ${token}\0`, 400],
    ['in Proxy-Authorization', (token) => `Proxy-Authorization: Bearer ${token}`, 401],
    ['in a cookie', (token) => `Cookie: authorization=Bearer ${token}; access_token=${token}`, 401],
    [
      'values that are names of fields',
      (token) => `X: authorization\r\nAuthorization: Bearer ${token}\r\nX: origin\r\nY: authorization`,
      200,
    ],
    [
      'a name that follows the name of the field as a value',
      (token) => `X: authorization\r\n${token.slice(0, 9).replaceAll('.', '-')}: y`,
      401,
    ],
    [
      'in a name with an underscore',
      (token) => `Authorization_: Bearer ${token}\r\nX-Authorization: Bearer ${token}`,
      401,
    ],
    [
      'in a trailer',
      (token) => `Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n0\r\nAuthorization: Bearer ${token}`,
      401,
    ],
    [
      'a bad one and a good one in a trailer',
      (token) => `Authorization: Bearer x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: Bearer ${token}`,
      401,
    ],
  ];
  it('holds exactly one Bearer token', async (t) => {
    const reached: string[] = [];
    const { port } = await guard(t, OPEN, (req, res) => {
      reached.push(`${req.headers['x-row']}`);
      res.end();
    });
    const token = await mint({ sub: '1' });
    for (const [index, [name, fields, expected]] of rows.entries()) {
      const answer = await exchange(
        port,
        `POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-Row: ${index}\r\n${CLOSE}${fields(token)}\r\n\r\n`,
      );
      // What Node's parser refuses itself changes with its versions: that may be 400, but never a way to the handler.
      assert.equal(statusOf(answer), expected, `${name}: ${answer}`);
      assert.equal(reached.includes(String(index)), expected === 200, name);
    }
  });

  it('gets the same answer from a token with a stray octet as from any other bad one', async (t) => {
    const { port } = await guard(t);
    const token = await mint({ sub: '1' });
    const [first, ...others] = await Promise.all(
      [
        `Bearer\t${token}`,
        `Bearer ${token} x`,
        `Bearer ${token}\xff`,
        'Bearer',
        'Bearer ,',
        `Bearer ${'.'.repeat(9000)}`,
      ].map(async (value) =>
        (await exchange(port, `GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: ${value}\r\n${CLOSE}\r\n`)).replace(
          /\r\nDate: [^\r]+/,
          '',
        ),
      ),
    );
    for (const other of others) assert.equal(other, first);
  });

  it('is Node’s to refuse beyond 16 KiB of header, and this server’s when Node takes more', async (t) => {
    const { server, port } = await guard(t);
    const send = (octets: number): Promise<string> =>
      exchange(
        port,
        `GET / HTTP/1.1\r\nHost: localhost\r\n${CLOSE}Authorization: Bearer ${'x'.repeat(octets)}\r\n\r\n`,
      );
    assert.equal(statusOf(await send(16_000)), 401);
    assert.equal(statusOf(await send(16_384)), 431);
    Object.assign(server, { maxHeaderSize: 1_048_576 });
    assert.equal(statusOf(await send(16_385)), 401);
    assert.equal(statusOf(await send(1_000_000)), 401);
  });

  it('takes a token of nearly 16 KiB', async (t) => {
    const { server, port } = await guard(t);
    Object.assign(server, { maxHeaderSize: 32_768 });
    const token = await mint({ note: 'x'.repeat(11_800) });
    assert(token.length > 16_000 && token.length <= 16_384, String(token.length));
    assert.equal(
      statusOf(
        await exchange(port, `GET / HTTP/1.1\r\nHost: localhost\r\n${CLOSE}Authorization: Bearer ${token}\r\n\r\n`),
      ),
      200,
    );
  });

  it('is one in HTTP/2 as well, where Node keeps only the first of two in its headers', async (t) => {
    const seen: unknown[] = [];
    const listener = withAuth(
      (req, res) => {
        seen.push(req.headers['x-row']);
        res.end(`sub ${getUser().sub}`);
      },
      { keys: await serverKeys() },
    );
    const server = createServer(asHttp2(listener)).listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const good = `Bearer ${await mint({ sub: '1' })}`;
    const cases: [tokens: string[], body: RegExp][] = [
      [[good], /^sub 1$/],
      [[], /^\{"error":"invalid_token","error_description":"An access token is required"/],
      [['Bearer x'], /^\{"error":"invalid_token"/],
      ...[
        [good, good],
        [good, 'Bearer x'],
        ['Bearer x', good],
        ['Basic QTpC', good],
        [good, ''],
        ['', good],
      ].map((tokens): [string[], RegExp] => [tokens, /^\{"error":"invalid_request"/]),
    ];
    for (const [row, [tokens, body]] of cases.entries()) {
      assert.match(
        await exchangeHttp2(port, [
          ['x-row', String(row)],
          ...tokens.map((value): [string, string] => ['authorization', value]),
        ]),
        body,
        String(row),
      );
    }
    assert.deepEqual(seen, ['0']);
  });
});

describe('the path', () => {
  const good = (token: string): string => `Authorization: Bearer ${token}\r\n`;
  const targets: [target: string, status: number][] = [
    [JWKS, 200],
    [`${JWKS}?`, 200],
    [`${JWKS}?x=/../`, 200],
    ['/open', 200],
    ['/open?a', 200],
    ['/open?/open', 200],
    ...[
      `/${JWKS}`,
      `${JWKS}/`,
      `//x${JWKS}`,
      `/.${JWKS}`,
      `/x/..${JWKS}`,
      `${JWKS}/..`,
      `${JWKS}/.`,
      '/.well-known//jwks.json',
      '/.well-known/./jwks.json',
      '/.well-known/x/../jwks.json',
      '/%2ewell-known/jwks.json',
      '/.well-known%2fjwks.json',
      '/.well-known/jwks%2ejson',
      '/.well-known/jwks.json%20',
      '/.well-known/jwks.json%00',
      '/.well-known/jwks.json;',
      '/.well-known/jwks.json;a=b',
      '/.WELL-KNOWN/jwks.json',
      '/.well-known\\jwks.json',
      '/.well-known/jwks.json%3f',
      '/.well-known/jwks.jso',
      '/.well-known/jwks.jsonx',
      '/.well-known',
      '/.well-known/',
      `http://a${JWKS}`,
      `https://a${JWKS}`,
      `http://127.0.0.1${JWKS}`,
      `HTTP://A${JWKS}`,
      `a:${JWKS}`,
      `x${JWKS}`,
      'http://a',
      '*',
      '//open',
      '/open/',
      '/open//',
      '/open/..',
      '/../open',
      '/./open',
      '/x/../open',
      '/%6fpen',
      '/open%2f',
      '/open;',
      '/OPEN',
      '/open#',
      '/open#x',
      '/open%23',
      '/open%3f',
      '/open&',
      'http://a/open',
      '/mcp?/open',
      '/mcp?path=/open',
      '/mcp#/open',
      '/mcp/open',
      '/mcp/../open',
      '?',
      '?/open',
      '/',
      '//',
      '///',
    ].map((target): [string, number] => [target, 401]),
  ];
  it('counts raw: nothing reaches a public document or a public path by accident', async (t) => {
    const { port } = await guard(t, OPEN);
    const token = await mint({ sub: '1' });
    for (const [target, expected] of targets) {
      const answer = await exchange(port, `GET ${target} HTTP/1.1\r\nHost: localhost\r\n${CLOSE}\r\n`);
      // A target that is none at all ends at Node's parser.
      if (statusOf(answer) === 400) assert.doesNotMatch(target, /^[/h]/i, target);
      else assert.equal(statusOf(answer), expected, target);
      if (expected === 401 && statusOf(answer) === 401)
        assert.equal(
          statusOf(await exchange(port, `GET ${target} HTTP/1.1\r\nHost: localhost\r\n${good(token)}${CLOSE}\r\n`)),
          200,
          `${target} with a token`,
        );
    }
  });

  it('is the same for every method the parser knows', async (t) => {
    const { port } = await guard(t, OPEN);
    const token = await mint({ sub: '1' });
    for (const method of [
      'GET',
      'HEAD',
      'POST',
      'PUT',
      'PATCH',
      'DELETE',
      'OPTIONS',
      'TRACE',
      'PROPFIND',
      'MKCOL',
      'SEARCH',
      'PURGE',
      'LOCK',
      'M-SEARCH',
      'LINK',
      'REPORT',
      'SOURCE',
      'QUERY',
    ]) {
      const send = (path: string, fields = ''): Promise<string> =>
        exchange(port, `${method} ${path} HTTP/1.1\r\nHost: localhost\r\n${fields}${CLOSE}\r\n`);
      const answer = statusOf(await send('/mcp'));
      if (method === 'QUERY' && answer === 400) continue; // unknown to the parser of old releases
      assert.equal(answer, 401, method);
      assert.equal(statusOf(await send('/mcp', good(token))), 200, method);
      assert.equal(statusOf(await send('/open')), 200, method);
      assert.equal(
        statusOf(await send(JWKS)),
        ['GET', 'HEAD'].includes(method) ? 200 : method === 'OPTIONS' ? 204 : 405,
        method,
      );
    }
  });

  it('is none in CONNECT, nor in a method that is none', async (t) => {
    let reached = 0;
    const { port } = await guard(t, OPEN, (_req, res) => {
      reached += 1;
      res.end();
    });
    for (const line of [
      'CONNECT /open',
      'CONNECT a:443',
      'get /open',
      'GETT /open',
      '\tGET /open',
      'GET\t/open',
      ' GET /open',
      'G\xc9T /open',
    ]) {
      const answer = await exchange(port, `${line} HTTP/1.1\r\nHost: localhost\r\n${CLOSE}\r\n`);
      assert([NaN, 400].includes(statusOf(answer)), `${line}: ${answer}`);
    }
    assert.equal(reached, 0);
  });
});

describe('what is never read', () => {
  it('a token in the query or in the body (RFC 6750 §2.2 and §2.3)', async (t) => {
    const { port } = await guard(t, {}, (_req, res) => res.end('reached'));
    const token = await mint({ sub: '1' });
    const form = `access_token=${token}&token=${token}`;
    for (const type of ['application/x-www-form-urlencoded', 'application/json', 'multipart/form-data; boundary=x']) {
      const head = `Host: localhost\r\n${CLOSE}Content-Type: ${type}\r\nContent-Length: ${form.length}\r\n\r\n${form}`;
      assert.equal(statusOf(await exchange(port, `POST /mcp?access_token=${token} HTTP/1.1\r\n${head}`)), 401);
    }
    for (const query of [
      `?access_token=${token}`,
      `?token=${token}`,
      `?authorization=Bearer%20${token}`,
      `#access_token=${token}`,
      `;access_token=${token}`,
    ]) {
      assert.equal(statusOf(await exchange(port, `GET /mcp${query} HTTP/1.1\r\nHost: localhost\r\n${CLOSE}\r\n`)), 401);
    }
  });

  it('a token in the query beside a bad one in the header', async (t) => {
    const { port } = await guard(t);
    const token = await mint({ sub: '1' });
    assert.equal(
      statusOf(
        await exchange(
          port,
          `GET /mcp?access_token=${token} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n${CLOSE}\r\n`,
        ),
      ),
      401,
    );
  });

  it('Host, Forwarded and X-Forwarded-*, in any answer', async (t) => {
    const { port } = await guard(t, {
      resource: 'https://mcp.example/mcp',
      openidConfiguration: true,
      cors: { origin: ['https://app.example'] },
      requiredScopes: ['read'],
    });
    const token = await mint({ sub: '1' });
    const paths = [
      JWKS,
      '/.well-known/oauth-protected-resource',
      '/.well-known/oauth-protected-resource/mcp',
      '/.well-known/openid-configuration',
      '/mcp',
    ];
    const rebound = ['Host: evil.example', 'Host: mcp.example.evil.example:81', 'Host: foreign.example:1'];
    const hostile = [
      'Host:',
      'Host: localhost\r\nForwarded: for=1;host=evil.example;proto=http',
      'Host: localhost\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: http\r\nX-Forwarded-For: 127.0.0.1\r\n' +
        'X-Forwarded-Prefix: /evil\r\nX-Forwarded-Port: 81',
      `Host: localhost\r\nX-Original-URL: ${JWKS}\r\nX-Rewrite-URL: ${JWKS}\r\nX-HTTP-Method-Override: OPTIONS\r\n` +
        'X-Forwarded-User: root\r\nX-Real-IP: 127.0.0.1',
    ];
    for (const path of paths) {
      for (const fields of ['', 'Authorization: Bearer x\r\n', `Authorization: Bearer ${token}\r\n`]) {
        const send = async (host: string): Promise<string> =>
          (await exchange(port, `GET ${path} HTTP/1.1\r\n${host}\r\n${fields}${CLOSE}\r\n`)).replace(
            /\r\nDate: [^\r]+/,
            '',
          );
        const plain = await send('Host: localhost');
        const foreign = path === '/mcp' ? await send('Host: foreign.example') : plain;
        assert.equal(statusOf(foreign), path === '/mcp' ? 403 : 200, path);
        for (const host of hostile) assert.equal(await send(host), plain, `${path} ${host}`);
        for (const host of rebound) assert.equal(await send(host), foreign, `${path} ${host}`);
      }
    }
  });

  it('what follows a request in its packet', async (t) => {
    const seen: unknown[] = [];
    const { port } = await guard(t, {}, (req, res) => {
      seen.push(req.url);
      req.resume().on('end', () => res.end());
    });
    const token = await mint({ sub: '1' });
    const smuggled = `GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n`;
    const authorized = `Host: localhost\r\nAuthorization: Bearer ${token}\r\n`;
    // The body of one request is not the head of the next; both lengths at once are refused (RFC 9112 §6.1).
    await exchange(
      port,
      `POST /1 HTTP/1.1\r\n${authorized}${CLOSE}Content-Length: ${smuggled.length}\r\n\r\n${smuggled}`,
    );
    const both = await exchange(
      port,
      `POST /2 HTTP/1.1\r\n${authorized}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${smuggled}`,
    );
    assert.equal(statusOf(both), 400);
    const pipelined = await exchange(
      port,
      `POST /3 HTTP/1.1\r\n${authorized}Content-Length: 0\r\n\r\n${smuggled.replace('\r\n\r\n', `\r\n${CLOSE}\r\n`)}`,
    );
    assert.match(pipelined, /^HTTP\/1\.1 200 OK\r\n[^]*HTTP\/1\.1 401 Unauthorized\r\n/);
    assert.deepEqual(seen, ['/1', '/3']);
  });
});

describe('gate and handler', () => {
  /** What the handler sees of the fields that the gate judges. */
  const seenBy = (req: IncomingMessage, res: ServerResponse): void => {
    const { authorization, origin, host, 'mcp-session-id': session } = req.headers;
    res.end(
      JSON.stringify({ sub: getUser().sub ?? null, authorization: authorization !== undefined, origin, host, session }),
    );
  };

  it('see the same fields: more than 1,000 of them are refused, and of 1,000 the last counts', async (t) => {
    for (const maxHeadersCount of [null, 0, 1000, 5000]) {
      let reached = 0;
      const options: AuthOptions = { anonymous: true, publicPaths: ['/open'] };
      const { server, port } = await guard(t, options, (req, res) => {
        reached += 1;
        seenBy(req, res);
      });
      Object.assign(server, { maxHeaderSize: 65_536, ...(maxHeadersCount !== null && { maxHeadersCount }) });
      const token = await mint({ sub: 'ada' });
      const send = (fields: number, last: string, path = '/mcp'): Promise<string> => {
        const padding = 'a:\r\n'.repeat(fields - 3);
        return exchange(port, `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${CLOSE}${padding}${last}\r\n\r\n`);
      };
      // The last of a thousand: the token is read, a bad one and a foreign Origin refused.
      assert.match(await send(1000, `Authorization: Bearer ${token}`), /^HTTP\/1\.1 200 [^]*"sub":"ada"/);
      assert.equal(statusOf(await send(1000, 'Authorization: Bearer x')), 401);
      assert.equal(statusOf(await send(1000, 'Origin: https://evil.example')), 403);
      assert.equal(statusOf(await send(1000, 'Mcp-Session-Id: a b')), 400);
      const before = reached;
      for (const fields of [1001, 1002, 1010, 1100, 2000, 3000]) {
        for (const last of [`Authorization: Bearer ${token}`, 'Authorization: Bearer x', 'Mcp-Session-Id: x', 'X: y']) {
          for (const path of ['/mcp', '/open']) {
            const answer = await send(fields, last, path);
            assert.equal(statusOf(answer), 431, `${fields} ${last.slice(0, 20)} ${maxHeadersCount}`);
          }
        }
      }
      assert.equal(reached, before, 'the handler');
    }
  });

  it('see the same fields where the server has a lower limit of them', async (t) => {
    let reached = 0;
    const { server, port } = await guard(t, { anonymous: true }, (req, res) => {
      reached += 1;
      seenBy(req, res);
    });
    server.maxHeadersCount = 50;
    const token = await mint({ sub: 'ada' });
    const send = async (fields: number, last: string): Promise<number> => {
      const padding = 'a:\r\n'.repeat(fields - 3);
      return statusOf(await exchange(port, `GET / HTTP/1.1\r\nHost: localhost\r\n${CLOSE}${padding}${last}\r\n\r\n`));
    };
    assert.equal(await send(50, `Authorization: Bearer ${token}`), 200);
    assert.equal(await send(50, 'Mcp-Session-Id: a b'), 400);
    const before = reached;
    for (const fields of [51, 60, 100, 1000])
      for (const last of [`Authorization: Bearer ${token}`, 'Mcp-Session-Id: a b', 'Origin: https://evil.example'])
        assert.equal(await send(fields, last), 431, `${fields} ${last.slice(0, 20)}`);
    assert.equal(reached, before, 'the handler');
  });

  it('see one session id of visible ASCII, or none', async (t) => {
    const sessions: unknown[] = [];
    const { port } = await guard(t, {}, (req, res) => {
      sessions.push(req.headers['mcp-session-id']);
      seenBy(req, res);
    });
    const token = await mint({ sub: 'ada' });
    const send = async (fields: string): Promise<number> => {
      const head = `Host: localhost\r\nAuthorization: Bearer ${token}\r\n${CLOSE}${fields}`;
      return statusOf(await exchange(port, `POST /mcp HTTP/1.1\r\n${head}Content-Length: 0\r\n\r\n`));
    };
    for (const id of ['s', '!', '~', 'a,b', 'a;b', '"a"', 'x'.repeat(200), ' a ', '\ta\t'])
      assert.equal(await send(`Mcp-Session-Id: ${id}\r\n`), 200, JSON.stringify(id));
    assert.equal(await send('Mcp-Session-Id:\r\n'), 200, 'an empty one is none');
    for (const id of ['a b', 'a\tb', 'a\xa0', '\xa0', '\xa0a', 'a\xa0b', 'a, b', '\xe9', '\x80', '\xff', 'a\x85'])
      assert.equal(await send(`Mcp-Session-Id: ${id}\r\n`), 400, JSON.stringify(id));
    for (const id of ['a\x7f', 'a\0b', 'a\x0bb', 'a\x1b'])
      assert.equal(await send(`Mcp-Session-Id: ${id}\r\n`), 400, `${JSON.stringify(id)}, by Node or by us`);
    for (const [one, two] of [
      ['s', 's'],
      ['s', 'other'],
      ['other', 's'],
      ['', 's'],
      ['s', ''],
      ['', ''],
    ]) {
      const between = 'X: y\r\n'.repeat(20);
      assert.equal(await send(`Mcp-Session-Id: ${one}\r\n${between}mCP-session-iD: ${two}\r\n`), 400, `${one},${two}`);
    }
    assert.ok(
      sessions.every((id) => typeof id === 'string' && /^[\x21-\x7e]*$/.test(id)),
      JSON.stringify(sessions),
    );
  });

  it('refuse such ids where sessions are not bound, too, and say so only to whom is let in', async (t) => {
    const { port } = await guard(t, { bindSessions: false });
    const headers = { 'mcp-session-id': 'a b' };
    assert.deepEqual(
      await ask(port, { headers: { ...headers, ...(await bearer({})) } }),
      refusal(400, 'invalid_request', 'Mcp-Session-Id must be one value of visible ASCII characters'),
    );
    assert.equal((await ask(port, { headers })).status, 401);
    assert.equal((await ask(port, { headers: { ...headers, authorization: 'Bearer x' } })).status, 401);
  });

  type Edit = (headers: Record<string, unknown>, good: string, req: IncomingMessage) => void;
  const EDITS: [name: string, sent: 'good' | 'bad' | 'none' | 'two', edit: Edit, answer: string][] = [
    ['a token that is set', 'none', (headers, good) => void (headers['authorization'] = good), '200 ada'],
    ['a token that is replaced', 'bad', (headers, good) => void (headers['authorization'] = good), '200 ada'],
    ['a token that is spoiled', 'good', (headers) => void (headers['authorization'] = 'Bearer x'), '401'],
    ['a token that is deleted', 'good', (headers) => void delete headers['authorization'], '200 nobody'],
    ['a bad token that is deleted', 'bad', (headers) => void delete headers['authorization'], '200 nobody'],
    ['a token that is undefined', 'good', (headers) => void (headers['authorization'] = undefined), '200 nobody'],
    ['a token in an array', 'none', (headers, good) => void (headers['authorization'] = [good]), '200 ada'],
    ['two tokens in an array', 'none', (headers, good) => void (headers['authorization'] = [good, good]), '400'],
    [
      'two tokens in an array, one bad',
      'good',
      (headers, good) => void (headers['authorization'] = [good, 'x']),
      '400',
    ],
    ['no token in an array', 'good', (headers) => void (headers['authorization'] = []), '200 nobody'],
    ['a number', 'good', (headers) => void (headers['authorization'] = 7), '200 nobody'],
    [
      'a token of another name in other case',
      'none',
      (headers, good) => void (headers['Authorization'] = good),
      '200 nobody',
    ],
    ['two tokens that were sent, one left', 'two', (headers, good) => void (headers['authorization'] = good), '400'],
    ['two tokens that were sent, none left', 'two', (headers) => void delete headers['authorization'], '400'],
    ['an Origin that is set', 'good', (headers) => void (headers['origin'] = 'https://evil.example'), '403'],
    ['an Origin in an array', 'good', (headers) => void (headers['origin'] = ['https://app.example']), '200 ada'],
    [
      'two Origins in an array',
      'good',
      (headers) => void (headers['origin'] = ['https://app.example', 'https://app.example']),
      '400',
    ],
    ['a Host that is set', 'good', (headers) => void (headers['host'] = 'evil.example'), '403'],
    ['a Host that is deleted', 'good', (headers) => void delete headers['host'], '200 ada'],
    ['two Hosts in an array', 'good', (headers) => void (headers['host'] = ['localhost', 'localhost']), '400'],
    ['a session id that is none', 'good', (headers) => void (headers['mcp-session-id'] = 'a b'), '400'],
    ['two session ids in an array', 'good', (headers) => void (headers['mcp-session-id'] = ['a', 'b']), '400'],
    ['all fields replaced', 'good', (_headers, _good, req) => void (req.headers = { host: 'localhost' }), '200 nobody'],
    [
      'all fields replaced, by an object without a prototype',
      'bad',
      (_headers, good, req) => void (req.headers = Object.assign(Object.create(null), { authorization: good })),
      '200 ada',
    ],
  ];
  for (const host of ['rawHeaders', 'no rawHeaders', 'rawHeaders that are empty'] as const) {
    for (const [name, sent, edit, answer] of EDITS) {
      // Without rawHeaders nobody can tell that two were sent: Node has dropped the second.
      const expected =
        sent === 'two' && host !== 'rawHeaders' ? (name.includes('none left') ? '200 nobody' : '200 ada') : answer;
      it(`judge what a middleware in front has left, with ${host}: ${name}`, async (t) => {
        const options: AuthOptions = {
          keys: await serverKeys(),
          anonymous: true,
          cors: { origin: ['https://app.example'] },
        };
        const good = (await bearer({ sub: 'ada' })).authorization;
        const middleware = authMiddleware(options);
        const guarded = withAuth((_req, res) => res.end(getUser().sub ?? 'nobody'), options);
        const { port } = await serve(t, (req, res) => {
          edit(untyped(req.headers), good, req);
          if (host !== 'rawHeaders')
            Object.defineProperty(req, 'rawHeaders', { value: host === 'no rawHeaders' ? undefined : [] });
          if (req.url === '/withAuth') guarded(req, res);
          else middleware(req, res, () => res.end(getUser().sub ?? 'nobody'));
        });
        const fields = { good: [good], bad: ['Bearer x'], none: [], two: [good, good] }[sent];
        const lines = fields.map((field) => `Authorization: ${field}\r\n`).join('');
        for (const path of ['/withAuth', '/authMiddleware']) {
          const text = await exchange(port, `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${lines}${CLOSE}\r\n`);
          const status = statusOf(text);
          assert.equal(status === 200 ? `200 ${/(ada|nobody)\s*$/.exec(text)?.[1]}` : String(status), expected, path);
        }
      });
    }
  }

  it('work on a host without rawHeaders whose writeHead returns nothing, as serverless emulations are', async (t) => {
    const middleware = authMiddleware({ keys: await serverKeys(), publicPaths: ['/open'], requiredScopes: ['read'] });
    const { port } = await serve(t, (req, res) => {
      Object.defineProperty(req, 'rawHeaders', { value: undefined });
      const { writeHead } = res;
      res.writeHead = (...args: unknown[]): never => void Reflect.apply(writeHead, res, args) as never;
      middleware(req, res, () => res.end(`reached ${getUser().sub}`));
    });
    const rows: [request: Ask, status: number][] = [
      [{}, 401],
      [{ headers: { authorization: 'Bearer x' } }, 401],
      [{ headers: { host: 'evil.example' } }, 403],
      [{ headers: { origin: 'https://evil.example' } }, 403],
      [{ headers: await bearer({}) }, 403],
      [{ headers: await bearer({ sub: 'ada', scope: 'read' }) }, 200],
      [{ path: '/open' }, 200],
      [{ path: JWKS }, 200],
      [{ path: JWKS, method: 'HEAD' }, 200],
      [{ path: JWKS, method: 'OPTIONS' }, 204],
      [{ path: JWKS, method: 'PUT' }, 405],
    ];
    for (const [request, status] of rows)
      assert.equal((await ask(port, request)).status, status, JSON.stringify(request));
  });
});

describe('bearerToken', () => {
  const head = (headers: object, rawHeaders?: string[]): IncomingMessage => untyped({ headers, rawHeaders });
  it('gives the one token of a head, for hosts that no listener of requests sees', () => {
    for (const [field, token] of [
      ['Bearer abc', 'abc'],
      ['bearer abc', 'abc'],
      ['BEARER    abc', 'abc'],
      ['Bearer a b', 'a b'], // judged as a token, which it is not
      ['Bearer', ''],
      ['Bearer\tabc', '\tabc'],
      ['Bearer, abc', ', abc'],
    ] as const) {
      assert.equal(bearerToken(head({ authorization: field }, ['Authorization', field])), token, field);
      assert.equal(bearerToken(head({ 'x-token': field }), 'X-Token'), token, field);
    }
  });
  it('throws an AuthError for none and for two', () => {
    const many = Array.from({ length: 1001 }, () => ['a', '']).flat();
    const rows: [req: IncomingMessage, tokenHeader: string | undefined, reason: string, status: number][] = [
      [head({}), undefined, 'no_token', 401],
      [head({ authorization: '' }), undefined, 'no_token', 401],
      [head({ authorization: 'Basic QTpC' }), undefined, 'no_token', 401],
      [head({ authorization: 'Bearerx abc' }), undefined, 'no_token', 401],
      [head({ authorization: 'Bearer abc' }), 'x-token', 'no_token', 401],
      [head(Object.create({ authorization: 'Bearer abc' })), undefined, 'no_token', 401],
      [untyped({}), undefined, 'no_token', 401],
      [head({ authorization: ['Bearer a', 'Bearer b'] }), undefined, 'duplicate_token', 400],
      [
        head({ authorization: 'Bearer a' }, ['Authorization', 'Bearer a', 'AUTHORIZATION', 'Bearer a']),
        undefined,
        'duplicate_token',
        400,
      ],
      [head({ authorization: 'Bearer a' }, many), undefined, 'too_many_fields', 431],
    ];
    for (const [req, tokenHeader, reason, status] of rows) {
      assert.throws(
        () => bearerToken(req, tokenHeader),
        (error) => error instanceof AuthError && error.reason === reason && error.status === status,
        reason,
      );
    }
  });
  it('reads the head of an upgrade', async (t) => {
    const seen: unknown[] = [];
    const { server, port } = await guard(t);
    server.on('upgrade', (req, socket) => {
      try {
        seen.push(bearerToken(req));
      } catch (error) {
        seen.push(error instanceof AuthError ? error.reason : error);
      }
      socket.end('HTTP/1.1 403 Forbidden\r\n\r\n');
    });
    for (const fields of [
      'Authorization: Bearer abc\r\n',
      '',
      'Authorization: Bearer abc\r\nAuthorization: Bearer abc\r\n',
      'Authorization: Basic abc\r\n',
    ])
      await exchange(
        port,
        `GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${fields}\r\n`,
      );
    assert.deepEqual(seen, ['abc', 'no_token', 'duplicate_token', 'no_token']);
  });
});
