// `inspect`, `verify`, and the completions: what they say, and that `verify` never says anything else than the library
// does.
import assert from 'node:assert/strict';
import { createCipheriv, constants, createPublicKey, publicEncrypt, randomBytes } from 'node:crypto';
import { chmodSync, copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  JWETokenVerifier,
  compactEncrypt,
  encryptToken,
  publicJwks,
  type Jwk,
  type JwkSet,
  type PrivateSigningJwk,
  type RsaPublicJwk,
} from 'mcp-auth-middleware';
import { cli, folder, mcp, without } from './support/command.js';
import { outcome, run, serve } from './support/support.js';

const home = folder({ after });
const keys = join(home, '.keys');
let set: JwkSet;
let recipient: RsaPublicJwk;
let signer: PrivateSigningJwk;
const read = (name: string) => JSON.parse(readFileSync(join(keys, name), 'utf8'));
before(async () => {
  for (const args of [
    ['generate', '--bits', '2048'],
    ['generate', '--signing'],
  ])
    assert.equal((await mcp(home, args)).code, 0);
  set = read('mcp-private.json');
  signer = read('signing-private.json');
  const [jwk] = publicJwks(set).keys;
  assert.ok(jwk?.n && jwk.e);
  recipient = { ...jwk, kty: 'RSA', n: jwk.n, e: jwk.e };
});

const now = (): number => Math.floor(Date.now() / 1000);
const claimsOf = (claims: object | string): Uint8Array =>
  Buffer.from(typeof claims === 'string' ? claims : JSON.stringify(claims));
const issuer = 'https://idp.example';
const audience = 'https://mcp.example/mcp';
const signed = (claims: object): Promise<string> =>
  encryptToken(claims, recipient, { sign: { key: signer, issuer, audience } });

/** A token with any protected header, which the library's own functions would not make. */
function withHeader(header: object, plaintext: string): string {
  const aad = Buffer.from(JSON.stringify(header)).toString('base64url');
  const [cek, iv] = [randomBytes(32), randomBytes(12)];
  const key = createPublicKey({ key: { kty: 'RSA', n: recipient.n, e: recipient.e }, format: 'jwk' });
  const options = { key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' };
  const cipher = createCipheriv('aes-256-gcm', cek, iv).setAAD(Buffer.from(aad));
  const ciphertext = Buffer.concat([cipher.update(plaintext), cipher.final()]);
  const parts = [publicEncrypt(options, cek), iv, ciphertext, cipher.getAuthTag()];
  return [aad, ...parts.map((part) => part.toString('base64url'))].join('.');
}
const head = (): { alg: string; enc: string; kid: string } => ({
  alg: 'RSA-OAEP-256',
  enc: 'A256GCM',
  kid: recipient.kid ?? '',
});
const other = (token: string, segment: number, text: string): string =>
  token
    .split('.')
    .map((part, at) => (at === segment ? text : part))
    .join('.');

const trust = ['--issuer', issuer, '--jwks', '.keys/signing-public.json', '--audience', audience];
const foreign = (): string => Buffer.from(JSON.stringify({ iss: 'https://evil.example' })).toString('base64url');
/** A token, the options, the check that must fail (none: accepted) and what must be said of it. */
const tokens: [name: string, make: () => string | Promise<string>, args: string[], failed: string, says: RegExp][] = [
  ['a good token', () => encryptToken({ sub: 'ada' }, recipient), [], '', /iat, exp, sub/],
  ['a good token for an audience', () => encryptToken({ aud: 'a' }, recipient), ['--audience', 'a'], '', /aud names a/],
  ['a good signed token', () => signed({ sub: 'ada' }), trust, '', /signed and encrypted/],
  ['nothing', () => '', [], 'form', /there is no token/],
  ['a JWT', () => 'eyJ.a.b', [], 'form', /three segments: a signed JWT that is not encrypted/],
  [
    'a token cut short',
    async () => (await signed({})).slice(0, -3),
    [],
    'form',
    /the tag has 14 octets instead of 16|not canonical/,
  ],
  ['a blank inside', async () => (await signed({})).replace('.', ' .'), [], 'form', /a blank/],
  ['a long token', () => `${'a'.repeat(20_000)}....`, [], 'form', /at most 16384/],
  ['a header of no JSON', async () => other(await signed({}), 0, 'AAAA'), [], 'header', /not a JSON object/],
  ['alg dir', () => withHeader({ ...head(), alg: 'dir' }, '{}'), [], 'header', /alg is dir; servers take RSA-OAEP-256/],
  [
    'A128GCM',
    () => withHeader({ ...head(), enc: 'A128GCM' }, '{}'),
    [],
    'header',
    /enc is A128GCM; servers take A256GCM alone/,
  ],
  ['zip', () => withHeader({ ...head(), zip: 'DEF' }, '{}'), [], 'header', /zip is present/],
  ['crit', () => withHeader({ ...head(), crit: ['x'] }, '{}'), [], 'header', /crit is present/],
  [
    'an unknown kid',
    () => withHeader({ ...head(), kid: 'nobody' }, '{}'),
    [],
    'key',
    /nobody is no key of .keys\/mcp-private.json/,
  ],
  [
    'RSA-OAEP for a key of RSA-OAEP-256',
    () => withHeader({ ...head(), alg: 'RSA-OAEP' }, '{}'),
    [],
    'key',
    /alg is RSA-OAEP, the key's RSA-OAEP-256/,
  ],
  [
    'another length of the encrypted key',
    async () => other(await signed({}), 1, 'AAAA'),
    [],
    'key',
    /has 3 octets, and the key takes 256/,
  ],
  [
    'a changed ciphertext',
    async () => other(await encryptToken({}, recipient), 3, 'AAAAAAAA'),
    [],
    'decryption',
    /changed on its way/,
  ],
  [
    'a signed token without issuers',
    () => signed({}),
    [],
    'level',
    /it is signed, and a server without trusted issuers refuses it/,
  ],
  ['an unsigned token with issuers', () => encryptToken({}, recipient), trust, 'level', /it is not signed/],
  [
    'no JWT inside',
    () => compactEncrypt(claimsOf('x'), recipient, { cty: 'JWT' }),
    trust,
    'level',
    /not a JWT of three segments/,
  ],
  ['claims of no JSON', () => compactEncrypt(claimsOf('x'), recipient), [], 'claims', /not a JSON object/],
  ['exp as text', () => compactEncrypt(claimsOf({ exp: '1' }), recipient), [], 'claims', /exp is not a number/],
  ['sub as number', () => compactEncrypt(claimsOf({ sub: 1 }), recipient), [], 'claims', /sub is not a string/],
  ['aud as number', () => compactEncrypt(claimsOf({ aud: 1 }), recipient), [], 'claims', /aud is neither/],
  ['cnf', () => compactEncrypt(claimsOf({ cnf: {} }), recipient), [], 'claims', /cnf asks for a proof of possession/],
  [
    'a large integer',
    () => compactEncrypt(claimsOf('{"id":9007199254740993}'), recipient),
    [],
    'claims',
    /id holds an integer beyond 2\^53/,
  ],
  [
    'too deep',
    () => compactEncrypt(claimsOf(`{"a":${'['.repeat(40)}${']'.repeat(40)}}`), recipient),
    [],
    'claims',
    /more than 32 levels/,
  ],
  ['too many', () => compactEncrypt(claimsOf({ a: Array(1001).fill(0) }), recipient), [], 'claims', /at most 1000/],
  [
    'sub in the header',
    () => withHeader({ ...head(), sub: 'b' }, '{"sub":"a"}'),
    [],
    'copies',
    /sub in the header is not that/,
  ],
  [
    'an expired token',
    () => compactEncrypt(claimsOf({ exp: now() - 60 }), recipient),
    [],
    'times',
    /expired .* \(\d+ s ago\)/,
  ],
  [
    'a token of tomorrow',
    () => compactEncrypt(claimsOf({ nbf: now() + 90_000 }), recipient),
    [],
    'times',
    /nbf is .* \(in 25 h\)/,
  ],
  [
    'exp before iat',
    () => compactEncrypt(claimsOf({ iat: now() + 9, exp: now() + 5 }), recipient),
    [],
    'times',
    /exp is not after iat/,
  ],
  [
    'no exp on a signed token',
    () =>
      signed({ exp: undefined, iss: issuer }).then(() =>
        compactEncrypt(Buffer.from('a.b.c'), recipient, { cty: 'JWT' }),
      ),
    trust,
    'level',
    /JWT/,
  ],
  [
    'another audience',
    () => encryptToken({ aud: ['b', 'c'] }, recipient),
    ['--audience', 'a'],
    'audience',
    /does not name a: aud has 2 names/,
  ],
  [
    'another issuer',
    () => signed({ iss: 'https://other.example' }),
    trust,
    'issuer',
    /iss is another; trusted is https:\/\/idp.example/,
  ],
  [
    'another signing key',
    async () => {
      const jws = Buffer.from(JSON.stringify({ alg: 'EdDSA', kid: signer.kid })).toString('base64url');
      const claims = Buffer.from(JSON.stringify({ iss: issuer, exp: now() + 60, aud: audience })).toString('base64url');
      return compactEncrypt(Buffer.from(`${jws}.${claims}.${randomBytes(64).toString('base64url')}`), recipient, {
        cty: 'JWT',
      });
    },
    trust,
    'signature',
    /no key of the issuer that fits EdDSA/,
  ],
  [
    'a key that the issuer does not have',
    () => {
      const jws = Buffer.from(JSON.stringify({ alg: 'ES256', kid: 'x' })).toString('base64url');
      const claims = Buffer.from(JSON.stringify({ iss: issuer, exp: now() + 60, aud: audience })).toString('base64url');
      return compactEncrypt(Buffer.from(`${jws}.${claims}.AAAA`), recipient, { cty: 'JWT' });
    },
    trust,
    'signature',
    /kid x is not in the issuer's set/,
  ],
  [
    'alg none',
    () => {
      const jws = Buffer.from('{"alg":"none"}').toString('base64url');
      return compactEncrypt(Buffer.from(`${jws}.${foreign()}.`), recipient, { cty: 'JWT' });
    },
    trust,
    'level',
    /signed with alg none/,
  ],
];

describe('verify', { concurrency: 2 }, () => {
  for (const [name, make, args, failed, says] of tokens) {
    test(`explains ${name}`, async () => {
      const token = await make();
      const done = await mcp(home, ['verify', '--json', ...args], { input: `${token}\n` });
      assert.equal(done.stderr, '');
      const report = JSON.parse(done.stdout);
      // The library's own verdict.
      const jwks: JwkSet = read('signing-public.json');
      const named = args[args.indexOf('--audience') + 1] ?? '';
      const options = {
        ...(args.includes('--audience') && { audience: named }),
        ...(args.includes('--issuer') && { trustedIssuers: [{ issuer, jwks }] }),
      };
      const verdict = await outcome(new JWETokenVerifier({ keys: set, ...options }).authenticate(token));
      assert.deepEqual([report.accepted, report.refused?.reason ?? 'accepted'], [verdict === 'accepted', verdict]);
      assert.equal(done.code, verdict === 'accepted' ? 0 : 1);
      const failures = report.checks.filter(({ result }: { result: string }) => result === 'failed');
      assert.deepEqual(
        failures.map(({ check }: { check: string }) => check),
        failed === '' ? [] : [failed],
        done.stdout,
      );
      const text = await mcp(home, ['verify', ...args], { input: token });
      assert.match(text.stdout, failed === '' ? /^accepted: / : /^refused: a server answers 401 invalid_token/);
      assert.match(text.stdout, says);
      assert.match(
        text.stdout,
        /\nAssumed for the rest: .*no maxTokenAge, no claimsMember.* requireExp (true|false)\n$/,
      );
      assert.doesNotMatch(text.stdout, /\x1b/);
    });
  }

  test('takes a token as it stands in a header field, and shows claim values only when asked', async (t) => {
    const path = folder(t, keys);
    const token = await encryptToken({ sub: 'ada', role: 'value-of-mine' }, recipient);
    writeFileSync(join(path, 'token.txt'), `Authorization: Bearer ${token}\r\n`);
    const hidden = await mcp(path, ['verify', 'token.txt']);
    assert.equal(hidden.code, 0, hidden.stdout);
    assert.doesNotMatch(hidden.stdout, /value-of-mine|ada\b/);
    for (const args of [['--show'], ['--show', '--json']])
      assert.match((await mcp(path, ['verify', 'token.txt', ...args])).stdout, /"role": "value-of-mine"/);
  });

  test("fetches the issuer's keys, and refuses an unusable key file", async (t) => {
    const { url } = await serve(t, (_, res) => res.end(readFileSync(join(keys, 'signing-public.json'))));
    const input = await signed({});
    const args = ['verify', '--issuer', issuer, '--audience', audience, '--jwks'];
    assert.equal((await mcp(home, [...args, url], { input })).code, 0);
    const [jwk] = JSON.parse(readFileSync(join(keys, 'signing-public.json'), 'utf8')).keys;
    const alone = await serve(t, (_, res) => res.end(JSON.stringify(jwk)));
    const one = await mcp(home, [...args, alone.url], { input });
    assert.deepEqual([one.code, one.stdout], [1, ''], 'a server would not take it');
    assert.match(one.stderr, /is not a JWK Set, and a server takes nothing else from a URL\n$/);
    const refused = await mcp(home, ['verify', '--key', '.keys/mcp-public.json'], { input });
    assert.deepEqual([refused.code, refused.stdout], [1, '']);
    assert.match(refused.stderr, /^error: .keys\/mcp-public.json: .*public key/);
  });
});

describe('inspect', { concurrency: 2 }, () => {
  const inspected = async (path: string, ...args: string[]) => {
    const { code, stdout, stderr } = await mcp(path, ['inspect', '--json', ...args]);
    assert.deepEqual([code, stderr], [0, '']);
    assert.doesNotMatch(stdout, /"(d|p|q|dp|dq|qi)":/);
    return JSON.parse(stdout);
  };
  const put = (t: { after(cleanup: () => unknown): void }, json: unknown): string => {
    const path = folder(t, keys);
    writeFileSync(join(path, '.keys/mcp-private.json'), JSON.stringify(json), { mode: 0o600 });
    return path;
  };

  test('says of each key what it is and when it is active', async (t) => {
    const [jwk] = set.keys;
    assert.ok(jwk);
    const times = {
      a: { nbf: 10 },
      b: { nbf: now() - 5, exp: now() + 1000 },
      c: { nbf: now() + 1000 },
      z: { exp: now() - 5 },
    };
    const path = put(t, { keys: Object.entries(times).map(([kid, time]) => ({ ...jwk, kid, iat: 5, ...time })) });
    const report = await inspected(path);
    assert.deepEqual(
      report.keys.map(({ kid, state, size, alg }: Record<string, unknown>) => [kid, state, size, alg]),
      [
        ['a', 'accepted', 2048, 'RSA-OAEP-256'],
        ['b', 'published', 2048, 'RSA-OAEP-256'],
        ['c', 'waiting', 2048, 'RSA-OAEP-256'],
        ['z', 'expired', 2048, 'RSA-OAEP-256'],
      ],
    );
    assert.deepEqual([report.accepted, report.published, report.kind], [true, 'b', 'private keys of a server']);
    const { stdout } = await mcp(path, ['inspect']);
    assert.match(
      stdout,
      /\n {2}b\n {6}published.*\n {6}RSA, 2048 bits.*\n {6}active since .*\n {6}expires .* \(in 17 min\)\n/,
    );
  });

  const refused: [name: string, make: (jwk: Jwk) => object, why: RegExp][] = [
    ['two keys of one kid', (jwk) => ({ keys: [jwk, jwk] }), /the same "kid"/],
    ['five keys', (jwk) => ({ keys: [1, 2, 3, 4, 5].map((at) => ({ ...jwk, kid: `${at}` })) }), /more than four/],
    ['a key for signing', (jwk) => ({ keys: [jwk, { ...jwk, kid: 'x', use: 'sig' }] }), /"use" must be enc/],
    ['a key without primes', ({ kty, n, e, d }) => ({ kty, n, e, d }), /\S/],
    ['a key of other primes', (jwk) => ({ ...jwk, p: jwk.q, q: jwk.p }), /do not belong together/],
    ['expired keys alone', (jwk) => ({ ...jwk, exp: 5 }), /every key has expired/],
  ];
  for (const [name, make, why] of refused) {
    test(`says why a server refuses ${name}`, async (t) => {
      const [jwk] = set.keys;
      assert.ok(jwk);
      const path = put(t, make(jwk));
      const report = await inspected(path);
      assert.equal(report.accepted, false);
      assert.match(report.refusal, why);
      assert.throws(() => new JWETokenVerifier({ keyFile: join(path, '.keys/mcp-private.json') }));
      assert.match((await mcp(path, ['inspect'])).stdout, /a server refuses it: /);
    });
  }

  test("tells public sets and issuers' sets apart, and what is usable in them", async (t) => {
    const path = folder(t, keys);
    const kinds: [file: string, kind: string, state: string][] = [
      ['mcp-public.json', 'public keys of a server', 'published'],
      ['signing-public.json', "an issuer's public keys", 'usable'],
      ['signing-private.json', "an issuer's private key, for signing", 'usable'],
    ];
    for (const [file, kind, state] of kinds) {
      const report = await inspected(path, `.keys/${file}`);
      assert.deepEqual([report.kind, report.accepted, report.keys[0].state], [kind, true, state]);
    }
    for (const [file, who] of [
      ['mcp-public.json', 'a producer'],
      ['signing-public.json', 'a server'],
      ['signing-private.json', 'token --sign'],
    ])
      assert.match((await mcp(path, ['inspect', `.keys/${file}`])).stdout, new RegExp(`; ${who} takes it\\n`));
    writeFileSync(
      join(path, 'weak.json'),
      JSON.stringify({ keys: [{ kty: 'OKP', crv: 'X25519', x: 'AA', use: 'sig' }] }),
    );
    const weak = await inspected(path, 'weak.json');
    assert.deepEqual([weak.accepted, weak.keys[0].state], [false, 'unusable']);
  });

  test('warns of the mode through a symbolic link, as Kubernetes mounts are', async (t) => {
    const path = folder(t, keys);
    chmodSync(join(path, '.keys/mcp-private.json'), 0o644);
    symlinkSync('.keys/mcp-private.json', join(path, 'link'));
    const { accepted, warnings } = await inspected(path, 'link');
    assert.equal(accepted, true);
    assert.match(String(warnings), /Every user of this machine can read the private keys in \S+\/link: chmod/);
  });

  test('says of a key whose exp is no time that it is the fault', async (t) => {
    const [jwk] = set.keys;
    const report = await inspected(put(t, { keys: [{ ...jwk, exp: 'soon' }] }));
    assert.deepEqual([report.accepted, report.keys[0].state], [false, 'unusable']);
    assert.match(report.keys[0].problem, /"exp" must be a number/);
  });

  test('takes "keys" for the set where there is a "kty" as well, as a server does', async (t) => {
    const path = put(t, { kty: 'RSA', keys: set.keys });
    assert.equal((await inspected(path)).accepted, true);
    assert.equal((await mcp(put(t, { ...set.keys[0], keys: [] }), ['public'])).code, 1);
  });

  test('warns of what a server warns of', async (t) => {
    const [{ alg: _alg, ...jwk } = assert.fail()] = set.keys;
    const path = put(t, { keys: [jwk] });
    chmodSync(join(path, '.keys/mcp-private.json'), 0o644);
    const { accepted, warnings } = await inspected(path);
    assert.equal(accepted, true);
    assert.match(warnings.join('\n'), /no "alg"/);
    assert.match(warnings.join('\n'), /can read the private keys/);
  });

  test('is coloured on a terminal only, and not with NO_COLOR', { skip: without('script') }, async (t) => {
    const path = folder(t, keys);
    const shown = async (env: Record<string, string | undefined>): Promise<string> => {
      const command = `'${process.execPath}' '${cli}' inspect`;
      return (
        await run('script', ['-qec', command, '/dev/null'], {
          cwd: path,
          env: { TERM: 'xterm', NO_COLOR: undefined, ...env },
        })
      ).stdout;
    };
    assert.match(await shown({}), /\x1b\[32ma server takes it\x1b\[0m/);
    for (const env of [{ NO_COLOR: '1' }, { TERM: 'dumb' }]) assert.doesNotMatch(await shown(env), /\x1b/);
  });
});

describe('completion', () => {
  const script = async (shell: string): Promise<string> => (await mcp(home, ['completion', shell])).stdout;

  test('completes commands, options and operands in bash', { skip: without('bash') }, async (t) => {
    const path = folder(t);
    writeFileSync(join(path, 'script'), await script('bash'));
    const complete = async (...words: string[]): Promise<string[]> => {
      const list = words.map((word) => `'${word}'`).join(' ');
      const set = `COMP_WORDS=(mcp-auth-middleware ${list}); COMP_CWORD=${words.length}`;
      const code = `source ./script; ${set}; _mcp_auth_middleware; printf '%s\\n' "\${COMPREPLY[@]}"`;
      return (await run('bash', ['-c', code], { cwd: path })).stdout.trim().split('\n');
    };
    assert.deepEqual(await complete('ro'), ['rotate']);
    assert.deepEqual(await complete('rotate', '--o'), ['--overlap', '--output']);
    assert.deepEqual(
      await complete('completion', ''),
      ['bash', 'zsh', 'fish'].concat((await complete('completion', '')).slice(3)),
    );
  });

  for (const [shell, check] of [
    ['zsh', ['-n', 'script']],
    ['fish', ['-n', 'script']],
  ] as const) {
    test(`is read by ${shell}`, { skip: without(shell) }, async (t) => {
      const path = folder(t);
      writeFileSync(join(path, 'script'), await script(shell));
      const { code, stderr } = await run(shell, check, { cwd: path });
      assert.deepEqual([code, stderr], [0, '']);
    });
  }

  test('completes in fish', { skip: without('fish') }, async (t) => {
    const path = folder(t);
    mkdirSync(join(path, 'fish'));
    writeFileSync(join(path, 'script'), await script('fish'));
    const complete = async (line: string): Promise<string[]> =>
      (await run('fish', ['-c', `source script; complete -C '${line}'`], { cwd: path, env: { HOME: path } })).stdout
        .trim()
        .split('\n')
        .map((text) => text.split('\t')[0] ?? '');
    assert.deepEqual(await complete('mcp-auth-middleware ro'), ['rotate']);
    assert.deepEqual((await complete('mcp-auth-middleware rotate --o')).sort(), ['--output', '--overlap']);
    copyFileSync(join(path, 'script'), join(path, 'fish/script'));
  });
});
