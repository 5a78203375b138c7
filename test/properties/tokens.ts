// Laws about tokens: what is refused, what is read, and that jose agrees.
import fc from 'fast-check';
import * as jose from 'jose';
import {
  compactDecrypt,
  compactEncrypt,
  encryptToken,
  type JwkSet,
  JWETokenVerifier,
  type PrivateSigningJwk,
  type RsaPublicJwk,
  withAuthFetch,
} from 'mcp-auth-middleware';
import assert from 'node:assert/strict';
import {
  constants,
  createCipheriv,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  publicEncrypt,
  randomBytes,
  sign,
} from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { assertOneError, type Law, law, THE_ONE_ERROR, verdictOf } from './laws.ts';
import { keyPair } from '../support/support.ts';

export const b64u = (bytes: Uint8Array | string): string => Buffer.from(bytes).toString('base64url');
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Text that is never a token, text that nearly is one. Few reach RSA, or there would not be many cases. */
function nearTokens(kid: string): fc.Arbitrary<unknown> {
  const names = fc.constantFrom(
    'alg',
    'enc',
    'kid',
    'zip',
    'crit',
    'cty',
    'typ',
    'jku',
    'x5u',
    'jwk',
    'p2c',
    '__proto__',
    'constructor',
  );
  const good = { alg: 'RSA-OAEP-256', enc: 'A256GCM', kid };
  const header = fc
    .oneof(
      { weight: 2, arbitrary: fc.constant(JSON.stringify(good)) },
      {
        weight: 4,
        arbitrary: fc
          .dictionary(names, fc.jsonValue({ maxDepth: 2 }), { maxKeys: 3 })
          .map((extra) => JSON.stringify({ ...good, ...extra })),
      },
      { weight: 1, arbitrary: fc.jsonValue({ maxDepth: 3 }).map((value) => JSON.stringify(value)) },
      { weight: 1, arbitrary: fc.string({ unit: 'binary' }) },
    )
    .map((text) => b64u(text));
  const octets = (exact: number, weight: number): fc.Arbitrary<string> =>
    fc
      .oneof(
        { weight, arbitrary: fc.uint8Array({ minLength: exact, maxLength: exact }) },
        { weight: 1, arbitrary: fc.uint8Array({ maxLength: 40 }) },
      )
      .map(b64u);
  const encryptedKey = fc.oneof(
    { weight: 3, arbitrary: fc.integer({ min: 0, max: 300 }).map((size) => b64u(Buffer.alloc(size, size))) },
    { weight: 1, arbitrary: fc.uint8Array({ minLength: 256, maxLength: 256 }).map(b64u) },
  );
  const segments = fc.tuple(header, encryptedKey, octets(12, 3), octets(8, 1), octets(16, 3));
  return fc.oneof(
    { weight: 6, arbitrary: segments.map((parts) => parts.join('.')) },
    {
      weight: 2,
      arbitrary: fc
        .tuple(segments, fc.constantFrom('', '..', '. ', '.=', '\n.', '\u2024', '\0'), fc.nat(5))
        .map(([parts, glue, at]) => [...parts.slice(0, at), glue, ...parts.slice(at)].join('.')),
    },
    {
      weight: 1,
      arbitrary: fc
        .array(fc.string({ unit: fc.constantFrom(...'AQab09-_+/= ') }), { maxLength: 7 })
        .map((parts) => parts.join('.')),
    },
    { weight: 2, arbitrary: fc.string({ unit: 'binary', maxLength: 200 }) },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes).toString('latin1')) },
    { weight: 1, arbitrary: fc.anything() },
  );
}

async function onlyTheOneError(): Promise<Law> {
  const { privateJwk } = await keyPair();
  const verifier = new JWETokenVerifier({ keys: privateJwk });
  const answer = withAuthFetch(() => new Response('the handler ran'), { verifier });
  return law(
    'arbitrary bytes never give anything but the one error',
    410,
    nearTokens(privateJwk.kid ?? ''),
    async (token) => {
      // Called as JavaScript would: the type says string, and a caller may not care.
      assertOneError(await verdictOf(Promise.resolve(Reflect.apply(verifier.verifyToken, verifier, [token]))), token);
      if (typeof token !== 'string') return;
      assertOneError(await verdictOf(compactDecrypt(token, privateJwk)), token);
      if (!/^[\t\x20-\x7e\x80-\xff]{0,100}$/.test(token)) return; // what may stand in a header field, and short
      const response = await answer(
        new Request('http://localhost/mcp', { headers: { authorization: `Bearer ${token}` } }),
      );
      const { code, status, message } = THE_ONE_ERROR;
      assert.deepEqual(
        [response.status, response.headers.get('www-authenticate'), await response.text()],
        [
          status,
          `Bearer error="${code}", error_description="${message}"`,
          JSON.stringify({ error: code, error_description: message }),
        ],
      );
    },
  );
}

type Edit =
  | { kind: 'insert' | 'replace'; at: number; text: string }
  | { kind: 'delete' | 'twin' | 'case' | 'cut'; at: number }
  | { kind: 'pad' | 'alphabet' | 'strayBits' | 'drop' | 'twice'; segment: number }
  | { kind: 'swap'; segment: number; other: number };

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

export function applyEdit(token: string, edit: Edit): string {
  if ('at' in edit) {
    const at = edit.at % (token.length + 1);
    const [before, char, after] = [token.slice(0, at), token.charAt(at), token.slice(at + 1)];
    switch (edit.kind) {
      case 'insert':
        return before + edit.text + token.slice(at);
      case 'replace':
        return before + edit.text + after;
      case 'delete':
        return before + after;
      case 'cut':
        return before;
      case 'twin':
        // The same octet to a decoder that drops the high one.
        return before + String.fromCharCode((char.charCodeAt(0) || 0) + 0x100) + after;
      case 'case':
        return before + (char === char.toLowerCase() ? char.toUpperCase() : char.toLowerCase()) + after;
    }
  }
  const parts = token.split('.');
  const at = edit.segment % parts.length;
  const part = parts[at] ?? '';
  switch (edit.kind) {
    case 'pad':
      parts[at] = `${part}=`;
      break;
    case 'alphabet':
      parts[at] = part.replaceAll('-', '+').replaceAll('_', '/');
      break;
    // Another last letter that decodes to the same octets, if there is one.
    case 'strayBits':
      parts[at] = part.slice(0, -1) + (ALPHABET.charAt(ALPHABET.indexOf(part.at(-1) ?? '') ^ 1) || '');
      break;
    case 'drop':
      parts.splice(at, 1);
      break;
    case 'twice':
      parts.splice(at, 0, part);
      break;
    case 'swap':
      [parts[at], parts[edit.other % parts.length]] = [parts[edit.other % parts.length] ?? '', part];
      break;
  }
  return parts.join('.');
}

const edits: fc.Arbitrary<Edit> = fc.oneof(
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constantFrom('insert', 'replace'),
      at: fc.nat(20_000),
      text: fc.constantFrom('=', ' ', '\n', '.', '+', '/', '%2E', 'A', '-', '\0', '\u00ad'),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constantFrom('delete', 'twin', 'case', 'cut'), at: fc.nat(20_000) }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constantFrom('pad', 'alphabet', 'strayBits', 'drop', 'twice'),
      segment: fc.nat(4),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('swap'), segment: fc.nat(4), other: fc.nat(4) }) },
);

async function onlyItsOwnText(): Promise<Law> {
  const [first, second] = await Promise.all([keyPair(), keyPair('sha1', 'RSA-OAEP')]);
  const verifier = new JWETokenVerifier({ keys: { keys: [first.privateJwk, second.privateJwk] } });
  const { kid: _kid, ...nameless } = first.publicJwk;
  const recipients: RsaPublicJwk[] = [first.publicJwk, second.publicJwk, { ...nameless, kid: undefined }];
  const tokens = await Promise.all(
    [0, 1, 2, 3, 4, 5].map((n) =>
      encryptToken({ sub: `user ${n}`, pad: 'x'.repeat(n) }, recipients[n % 3] ?? first.publicJwk),
    ),
  );
  const segment = (text: string): string => Buffer.from(text, 'base64url').toString('base64url');
  const arbitrary = fc.tuple(fc.nat(tokens.length - 1), fc.array(edits, { maxLength: 3, minLength: 0 }));
  return law(
    'a known token is accepted in its own text alone, and that is canonical',
    130,
    arbitrary,
    async ([index, changes]) => {
      const token = tokens[index] ?? '';
      assert.equal((await verifier.verifyToken(token)).sub, `user ${index}`); // known from now on
      const text = changes.reduce(applyEdit, token);
      const verdict = await verdictOf(verifier.verifyToken(text));
      if (text !== token) return assertOneError(verdict, text);
      assert.ok('accepted' in verdict);
      assert.equal(text.split('.').map(segment).join('.'), text);
    },
  );
}

/** How many JSON values, and how deep in containers: what the limits of a claims set count. */
function measure(value: unknown): { values: number; depth: number } {
  if (typeof value !== 'object' || value === null) return { values: 1, depth: 0 };
  const inner = Object.values(value).map(measure);
  return {
    values: 1 + inner.reduce((sum, { values }) => sum + values, 0),
    depth: 1 + Math.max(0, ...inner.map(({ depth }) => depth)),
  };
}

/** Whether an integer is in it that JSON cannot carry exactly (RFC 7493 §2.2). */
function isRounded(value: unknown): boolean {
  if (typeof value === 'number') return Number.isInteger(value) && Math.abs(value) >= 2 ** 53;
  return typeof value === 'object' && value !== null && Object.values(value).some(isRounded);
}

function isSealed(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return true;
  const plain = Array.isArray(value) || Object.getPrototypeOf(value) === null;
  return Object.isFrozen(value) && plain && Object.values(value).every(isSealed);
}

interface SigningPair {
  privateJwk: PrivateSigningJwk;
  publicJwk: jose.JWK & { kty: string };
}

/** An issuer's key, with its algorithm for a kid. */
export function signingPair(alg: 'EdDSA' | 'ES256' | 'RS256' | 'PS256', kid: string = alg): SigningPair {
  const { privateKey } =
    alg === 'EdDSA'
      ? generateKeyPairSync('ed25519')
      : alg === 'ES256'
        ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
        : generateKeyPairSync('rsa', { modulusLength: 2048 });
  const { kty = '', d = '', ...rest } = privateKey.export({ format: 'jwk' });
  return {
    privateJwk: { kty, d, ...rest, kid, alg },
    publicJwk: { ...createPublicKey(privateKey).export({ format: 'jwk' }), kty, kid, alg },
  };
}

export const AUDIENCE = 'https://mcp.example/mcp';
const REGISTERED = ['iss', 'sub', 'aud', 'exp', 'nbf', 'iat', 'jti'];

function claimSets(): fc.Arbitrary<Record<string, unknown>> {
  const now = Math.floor(Date.now() / 1000);
  const nested = fc
    .integer({ min: 28, max: 34 })
    .map((depth) => Array.from({ length: depth }).reduce<unknown>((inner, _, n) => (n % 2 ? [inner] : { inner }), 1));
  const many = fc.integer({ min: 990, max: 1001 }).map((length) => Array.from({ length }, (_, n) => n % 7));
  const value = fc.oneof(
    { weight: 20, arbitrary: fc.jsonValue({ maxDepth: 4, stringUnit: 'binary' }) },
    { weight: 2, arbitrary: fc.double({ noNaN: true, noDefaultInfinity: true }) },
    { weight: 1, arbitrary: nested },
    { weight: 1, arbitrary: many },
  );
  const name = fc.oneof(
    fc.string({ unit: 'binary' }),
    fc.constantFrom('__proto__', 'constructor', 'toString', 'email', 'scope', 'scp', 'data', 'cnf', '', '0'),
  );
  const own = fc.dictionary(
    name.filter((text) => !REGISTERED.includes(text)),
    value,
    { maxKeys: 6 },
  );
  const registered = fc.record(
    {
      sub: fc.string({ unit: 'binary' }),
      jti: fc.string(),
      exp: fc.oneof(
        fc.integer({ min: now + 3600, max: now + 1e9 }),
        fc.double({ min: now + 3600, max: 1e15, noNaN: true }),
      ),
      nbf: fc.integer({ min: 0, max: now }),
      iat: fc.integer({ min: 0, max: now }),
    },
    { requiredKeys: [] },
  );
  return fc.tuple(own, registered).map(([some, others]) => ({ ...some, ...others }));
}

async function mintedIsRead(): Promise<Law> {
  const [first, second] = await Promise.all([keyPair(), keyPair('sha1', 'RSA-OAEP')]);
  const [ed, es] = [signingPair('EdDSA', 'ed'), signingPair('ES256', 'es')];
  const keys: JwkSet = { keys: [first.privateJwk, second.privateJwk] };
  const plain = new JWETokenVerifier({ keys });
  const signed = new JWETokenVerifier({
    keys,
    audience: AUDIENCE,
    trustedIssuers: [{ issuer: 'issuer', jwks: { keys: [ed.publicJwk, es.publicJwk] } }],
  });
  const arbitrary = fc.record({
    claims: claimSets(),
    recipient: fc.constantFrom(first.publicJwk, second.publicJwk),
    key: fc.constantFrom(undefined, undefined, ed.privateJwk, es.privateJwk),
    ttl: fc.constantFrom(undefined, null, 60),
  });
  return law('what is minted is what is read', 70, arbitrary, async ({ claims, recipient, key, ttl }) => {
    const expiresIn = 'exp' in claims ? undefined : key ? 60 : ttl;
    const sign = key && { key, issuer: 'issuer', audience: AUDIENCE };
    const added = {
      ...(key && { iss: 'issuer', aud: AUDIENCE }),
      ...(!('iat' in claims) && { iat: 0 }),
      ...(!('exp' in claims) && expiresIn !== null && { exp: 0 }),
    };
    const { values, depth } = measure({ ...added, ...claims });
    const mintable = values <= 1000 && depth <= 32 && !isRounded(claims) && !('cnf' in claims);
    let token: string;
    try {
      token = await encryptToken(claims, recipient, {
        ...(expiresIn !== undefined && { expiresIn }),
        ...(sign && { sign }),
      });
    } catch (error) {
      assert.ok(error instanceof TypeError);
      if (!mintable) return assert.match(error.message, /^No server takes these claims/);
      // for its size alone
      assert.ok(
        /servers take at most 16384/.test(error.message) && Buffer.byteLength(JSON.stringify(claims)) > 8000,
        'refused to mint',
      );
      return;
    }
    assert.ok(mintable, 'minted what no server takes');
    const verdict = await verdictOf((key ? signed : plain).authenticate(token));
    assert.ok('accepted' in verdict, 'refused what it minted');
    const { user, keyId } = verdict.accepted;
    assert.equal(keyId, recipient.kid);
    assert.equal(verdict.accepted.signed, key !== undefined);
    assert.ok(isSealed(user), 'not frozen through and through');
    const { iat, exp, ...rest } = user;
    assert.deepEqual(
      Object.keys(added).filter((name) => !(name in user)),
      [],
    );
    if (!('iat' in claims)) assert.ok(Math.abs(Date.now() / 1000 - Number(iat)) < 60);
    if ('exp' in added)
      assert.equal(
        Number(exp) - Math.floor(Number(iat)),
        'iat' in claims ? Number(exp) - Math.floor(Number(iat)) : (expiresIn ?? 3600),
      );
    // Through JSON once more, for what JSON cannot tell apart (-0) and for prototypes.
    const sent: unknown = JSON.parse(JSON.stringify({ ...added, ...claims, iat: 0, exp: 0 }));
    assert.deepEqual(JSON.parse(JSON.stringify({ ...rest, iat: 0, exp: 0 })), sent);
  });
}

/** Numbers as their digits stand in a token, with how many containers around them. */
const numerals: fc.Arbitrary<string> = fc.oneof(
  { weight: 3, arbitrary: fc.bigInt({ min: -(2n ** 53n) - 3n, max: 2n ** 53n + 3n }).map(String) },
  { weight: 3, arbitrary: fc.constantFrom(-3n, -2n, -1n, 0n, 1n, 2n).map((near) => String(2n ** 53n + near)) },
  { weight: 1, arbitrary: fc.bigInt({ min: 2n ** 53n, max: 2n ** 70n }).map((big) => `-${big}`) },
  {
    weight: 2,
    arbitrary: fc.constantFrom(
      '9007199254740992.0',
      '9007199254740993e0',
      '900719925474099.3e1',
      '1e16',
      '1E+308',
      '1e400',
    ),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom('9007199254740991.0', '1e15', '-0', '0.1', '9007199254740990e0', '5e-324', '1.5'),
  },
);
const WRAPPED: ((text: string) => string)[] = [
  (text) => text,
  (text) => `[${text}]`,
  (text) => `{"id":${text}}`,
  (text) => `[{"a":[[1,${text}]]}]`,
  (text) => '['.repeat(30) + text + ']'.repeat(30),
];

async function noIntegerIsRounded(): Promise<Law> {
  const [{ privateJwk, publicJwk }, ed] = [await keyPair(), signingPair('EdDSA')];
  const plain = new JWETokenVerifier({ keys: privateJwk });
  const trusting = { audience: 'a', trustedIssuers: [{ issuer: 'i', jwks: { keys: [ed.publicJwk] } }] };
  const signed = new JWETokenVerifier({ keys: privateJwk, ...trusting });
  const signingKey = createPrivateKey({ key: { ...ed.privateJwk }, format: 'jwk' });
  const exp = Math.floor(Date.now() / 1000) + 1e6;
  const arbitrary = fc.record({
    numeral: numerals,
    wrap: fc.constantFrom(...WRAPPED),
    name: fc.constantFrom('id', 'sub_id', '__proto__', 'scope', 'data', 'x'),
    nested: fc.boolean(),
  });
  return law('no integer of a token is read as another one', 40, arbitrary, async ({ numeral, wrap, name, nested }) => {
    const claims = `{"iss":"i","aud":"a","exp":${exp},"${name}":${wrap(numeral)}}`;
    const input = `${b64u(JSON.stringify({ alg: 'EdDSA', kid: ed.privateJwk.kid }))}.${b64u(claims)}`;
    const inner = (): string => `${input}.${b64u(sign(null, Buffer.from(input), signingKey))}`;
    const token = compactEncrypt(Buffer.from(nested ? inner() : claims), publicJwk, nested ? { cty: 'JWT' } : {});
    const verdict = await verdictOf((nested ? signed : plain).authenticate(token));
    const value = Number(numeral);
    if (!Number.isFinite(value) || (Number.isInteger(value) && !Number.isSafeInteger(value)))
      return assertOneError(verdict, token);
    assert.ok('accepted' in verdict, 'refused a number that stays what it is');
    const read = JSON.stringify(verdict.accepted.user[name]);
    assert.equal(read, wrap(JSON.stringify(value)));
    if (/^-?\d+$/.test(numeral)) assert.equal(BigInt(value), BigInt(numeral));
  });
}

/** Claims that a header may copy (RFC 7519 §5.3), and what others take for the same. */
const COPIES = [undefined, 'a', 'b', '', 'A', 'a ', ['a'], ['a', 'b'], ['b', 'a'], [], null, 1, { a: 1 }, true];

async function copiesAreTrue(): Promise<Law> {
  const { privateJwk, publicJwk } = await keyPair();
  const verifier = new JWETokenVerifier({ keys: privateJwk });
  const { alg, kid } = publicJwk;
  const copy = fc.constantFrom(...COPIES);
  const text = fc.constantFrom(undefined, 'a', 'b', '');
  const arbitrary = fc.record({
    header: fc.record({ iss: copy, sub: copy, aud: copy }),
    claims: fc.record({ iss: text, sub: text, aud: fc.constantFrom(undefined, 'a', 'b', ['a'], ['a', 'b'], []) }),
    same: fc.boolean(),
  });
  return law('what a header copies of the claims is true', 20, arbitrary, async ({ header, claims, same }) => {
    const copies: Record<string, unknown> = same ? { ...claims, exp: 1 } : header;
    const bytes = Buffer.from(JSON.stringify({ alg, enc: 'A256GCM', kid, ...copies }));
    const token = sealByHand({
      header: bytes,
      recipient: { jwk: publicJwk, oaepHash: 'sha256' },
      cek: 32,
      enc: 'aes-256-gcm',
      iv: 12,
      plaintext: Buffer.from(JSON.stringify(claims)),
    });
    const verdict = await verdictOf(verifier.authenticate(token));
    const stated: Record<string, unknown> = claims;
    const isTrue = ['iss', 'sub', 'aud'].every(
      (name) => copies[name] === undefined || isDeepStrictEqual(copies[name], stated[name]),
    );
    if (!isTrue) return assertOneError(verdict, token);
    assert.ok('accepted' in verdict, 'refused a copy that is true');
    assert.equal(JSON.stringify(verdict.accepted.user), JSON.stringify(claims));
  });
}

/** A JWE by hand, as a producer with other ideas, or an attacker, would make it. */
interface Recipe {
  header: Uint8Array;
  recipient: { jwk: RsaPublicJwk; oaepHash: string };
  cek: number;
  enc: 'aes-128-gcm' | 'aes-192-gcm' | 'aes-256-gcm';
  iv: number;
  plaintext: Uint8Array;
}

export function sealByHand({
  header,
  recipient: { jwk, oaepHash },
  cek: size,
  enc,
  iv: ivSize,
  plaintext,
}: Recipe): string {
  const [cek, iv] = [randomBytes(size), randomBytes(ivSize)];
  const key = createPublicKey({ key: { ...jwk }, format: 'jwk' });
  const encryptedKey = publicEncrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash }, cek);
  const usable = Buffer.alloc({ 'aes-128-gcm': 16, 'aes-192-gcm': 24, 'aes-256-gcm': 32 }[enc]);
  cek.copy(usable);
  const cipher = createCipheriv(enc, usable, iv, { authTagLength: 16 }).setAAD(Buffer.from(b64u(header)));
  const ciphertext = Buffer.concat([cipher.update(plaintext), cipher.final()]);
  return [header, encryptedKey, iv, ciphertext, cipher.getAuthTag()].map(b64u).join('.');
}

/** A token as anyone but us reads it: leniently. */
interface Loose {
  text: string;
  header: Record<string, unknown>;
  headerBytes: Buffer;
  segments: string[];
}

function readLoosely(text: string): Loose {
  const segments = text.split('.');
  const headerBytes = Buffer.from(segments[0] ?? '', 'base64url');
  try {
    const header: unknown = JSON.parse(headerBytes.toString().replace(/^\ufeff/, ''));
    return { text, header: isObject(header) ? header : {}, headerBytes, segments };
  } catch {
    return { text, header: {}, headerBytes, segments };
  }
}

export interface Policy {
  name: string;
  /** Whether it is the reason to refuse this token. */
  refuses: (token: Loose, key: { kid: string; alg: string }) => boolean;
}

/** Every reason we have to refuse an encrypted token that jose takes. Whatever is refused beyond them is a bug. */
export const JWE_POLICIES: readonly Policy[] = [
  { name: 'at most 16,384 characters', refuses: ({ text }) => text.length > 16_384 },
  {
    name: 'base64url is canonical',
    refuses: ({ segments }) => segments.some((text) => b64u(Buffer.from(text, 'base64url')) !== text),
  },
  {
    name: 'the header has no byte order mark',
    refuses: ({ headerBytes }) => headerBytes.subarray(0, 3).equals(Buffer.from('efbbbf', 'hex')),
  },
  { name: 'the key says the algorithm', refuses: ({ header }, key) => header['alg'] !== key.alg },
  { name: 'enc is A256GCM', refuses: ({ header }) => header['enc'] !== 'A256GCM' },
  {
    name: 'kid names the key, if there is one',
    refuses: ({ header }, key) => 'kid' in header && header['kid'] !== key.kid,
  },
  {
    name: 'cty and typ are strings',
    refuses: ({ header }) =>
      [header['cty'], header['typ']].some((value) => value !== undefined && typeof value !== 'string'),
  },
  { name: 'no compression', refuses: ({ header }) => 'zip' in header },
];

const JWE_KEYS = async () => {
  const [sha256, sha1] = await Promise.all([keyPair(), keyPair('sha1', 'RSA-OAEP')]);
  return [
    { ...sha256, alg: 'RSA-OAEP-256', kid: sha256.publicJwk.kid ?? '' },
    { ...sha1, alg: 'RSA-OAEP', kid: sha1.publicJwk.kid ?? '' },
  ] as const;
};
type JweKey = Awaited<ReturnType<typeof JWE_KEYS>>[number];

/** Both verdicts on one token, which must agree but for the policies. Returns the policies that made the difference. */
export async function compareWithJose(token: string, key: JweKey, others: readonly JweKey[]): Promise<string[]> {
  const { alg: _alg, kid: _kid, use: _use, iat: _iat, ...members } = key.privateJwk;
  const foreign = createPrivateKey({ key: { ...members }, format: 'jwk' }); // as a KeyObject it takes every algorithm
  const ours = await verdictOf(compactDecrypt(token, { keys: [key, ...others].map(({ privateJwk }) => privateJwk) }));
  const theirs = await jose.compactDecrypt(token, foreign).catch(() => undefined);
  if ('accepted' in ours) {
    assert.ok(theirs, 'we accept what jose refuses');
    assert.ok(Buffer.from(ours.accepted.plaintext).equals(theirs.plaintext), 'another plaintext than jose reads');
    assert.ok(
      isDeepStrictEqual({ ...ours.accepted.protectedHeader }, { ...theirs.protectedHeader }),
      'another header than jose reads',
    );
    return [];
  }
  assertOneError(ours, token);
  if (!theirs) return [];
  const policies = JWE_POLICIES.filter(({ refuses }) => refuses(readLoosely(token), key)).map(({ name }) => name);
  assert.notDeepEqual(policies, [], 'jose accepts it, and no policy says why we do not');
  return policies;
}

async function agreesWithJose(): Promise<Law> {
  const keys = await JWE_KEYS();
  const header = fc.record({
    alg: fc.oneof(
      { weight: 12, arbitrary: fc.constant('own') },
      { weight: 1, arbitrary: fc.constantFrom('RSA-OAEP', 'RSA-OAEP-256', 'RSA-OAEP-512', 'RSA1_5', 'dir', '') },
    ),
    enc: fc.oneof(
      { weight: 8, arbitrary: fc.constant('A256GCM') },
      { weight: 1, arbitrary: fc.constantFrom('A128GCM', 'A192GCM', 'A256CBC-HS512', 'a256gcm') },
    ),
    kid: fc.oneof(
      { weight: 8, arbitrary: fc.constant('own') },
      { weight: 1, arbitrary: fc.constantFrom('other', null, 7, '') },
    ),
    more: fc.dictionary(
      fc.constantFrom('cty', 'typ', 'zip', 'crit', 'b64', 'apu', 'jku', 'x5c', 'x', '__proto__'),
      fc.oneof(fc.jsonValue({ maxDepth: 1 }), fc.constantFrom('JWT', 'DEF', ['b64'], ['x'])),
      { maxKeys: 2 },
    ),
    wrap: fc.oneof(
      { weight: 12, arbitrary: fc.constant('none') },
      { weight: 1, arbitrary: fc.constantFrom('bom', 'space', 'duplicate', 'utf8', 'array') },
    ),
  });
  const arbitrary = fc.record({
    key: fc.nat(1),
    both: fc.boolean(),
    header,
    oaep: fc.oneof(
      { weight: 12, arbitrary: fc.constant('own') },
      { weight: 1, arbitrary: fc.constantFrom('sha1', 'sha256', 'sha512') },
    ),
    cek: fc.oneof(
      { weight: 12, arbitrary: fc.constant(32) },
      { weight: 1, arbitrary: fc.constantFrom(0, 16, 24, 31, 33, 64) },
    ),
    iv: fc.oneof({ weight: 12, arbitrary: fc.constant(12) }, { weight: 1, arbitrary: fc.constantFrom(1, 11, 13, 16) }),
    plaintext: fc.oneof(
      { weight: 20, arbitrary: fc.uint8Array({ maxLength: 60 }) },
      { weight: 1, arbitrary: fc.integer({ min: 11_600, max: 12_000 }).map((size) => new Uint8Array(size)) },
    ),
    changes: fc.oneof(
      { weight: 3, arbitrary: fc.constant<Edit[]>([]) },
      { weight: 1, arbitrary: fc.array(edits, { minLength: 1, maxLength: 2 }) },
    ),
  });
  return law('what we accept jose accepts, and the reverse but for named policies', 90, arbitrary, async (recipe) => {
    const key = recipe.key ? keys[1] : keys[0];
    const { alg, enc, kid, more, wrap } = recipe.header;
    const members = {
      alg: alg === 'own' ? key.alg : alg,
      enc,
      ...(kid !== '' && { kid: kid === 'own' ? key.kid : kid }),
      ...more,
    };
    const json = JSON.stringify(wrap === 'array' ? [members] : members);
    const text =
      {
        none: json,
        array: json,
        bom: `\ufeff${json}`,
        space: ` ${json}\n`,
        duplicate: json.replace('{', '{"alg":"none",'),
        utf8: json,
      }[wrap] ?? json;
    const bytes = wrap === 'utf8' ? Buffer.from(json.replace('{', '{"\xff":1,'), 'latin1') : Buffer.from(text);
    const own = key.alg === 'RSA-OAEP' ? 'sha1' : 'sha256';
    const token = sealByHand({
      header: bytes,
      recipient: { jwk: key.publicJwk, oaepHash: recipe.oaep === 'own' ? own : recipe.oaep },
      cek: recipe.cek,
      iv: recipe.iv,
      plaintext: recipe.plaintext,
      enc: enc === 'A128GCM' ? 'aes-128-gcm' : enc === 'A192GCM' ? 'aes-192-gcm' : 'aes-256-gcm',
    });
    await compareWithJose(
      recipe.changes.reduce(applyEdit, token),
      key,
      recipe.both ? keys.filter((other) => other !== key) : [],
    );
  });
}

/** One token for each policy, which jose takes and we do not: a policy that never applies would hide a bug. */
export async function policyExamples(): Promise<{ policy: string; difference: string[] }[]> {
  const [key, other] = await JWE_KEYS();
  const { alg, kid } = key;
  const hand = (header: object | string, more: Partial<Recipe> = {}): string =>
    sealByHand({
      header: Buffer.from(typeof header === 'string' ? header : JSON.stringify(header)),
      recipient: { jwk: key.publicJwk, oaepHash: 'sha256' },
      cek: 32,
      enc: 'aes-256-gcm',
      iv: 12,
      plaintext: Buffer.from('{}'),
      ...more,
    });
  const good = { alg, enc: 'A256GCM', kid };
  const deflated = await new jose.CompactEncrypt(Buffer.from('{}'))
    .setProtectedHeader({ ...good, zip: 'DEF' })
    .encrypt(createPublicKey({ key: { ...key.publicJwk }, format: 'jwk' }));
  const examples: Record<string, string> = {
    'at most 16,384 characters': hand(good, { plaintext: new Uint8Array(12_000) }),
    'base64url is canonical': `${hand(good)}==`,
    'the header has no byte order mark': hand(`\ufeff${JSON.stringify(good)}`),
    'the key says the algorithm': hand(
      { ...good, alg: 'RSA-OAEP' },
      { recipient: { jwk: key.publicJwk, oaepHash: 'sha1' } },
    ),
    'enc is A256GCM': hand({ ...good, enc: 'A128GCM' }, { enc: 'aes-128-gcm', cek: 16 }),
    'kid names the key, if there is one': hand({ ...good, kid: other.kid }),
    'cty and typ are strings': hand({ ...good, cty: 1 }),
    'no compression': deflated,
  };
  return Promise.all(
    JWE_POLICIES.map(async ({ name }) => ({
      policy: name,
      difference: await compareWithJose(examples[name] ?? '', key, [other]),
    })),
  );
}

/** Every reason we have to refuse a signed and encrypted token whose inside jose verifies under one of the issuers. */
const SIGNED_POLICIES: readonly {
  name: string;
  refuses: (token: {
    outer: unknown;
    inner: string;
    header: Record<string, unknown>;
    claims: Record<string, unknown>;
    fitting: number;
  }) => boolean;
}[] = [
  {
    name: 'the outer header says cty: JWT',
    refuses: ({ outer }) => typeof outer !== 'string' || outer.toLowerCase() !== 'jwt',
  },
  {
    name: 'base64url is canonical',
    refuses: ({ inner }) => inner.split('.').some((text) => b64u(Buffer.from(text, 'base64url')) !== text),
  },
  { name: 'no second nesting', refuses: ({ header }) => 'cty' in header },
  { name: 'no critical extensions', refuses: ({ header }) => 'crit' in header },
  { name: 'typ is a string', refuses: ({ header: { typ } }) => typ !== undefined && typeof typ !== 'string' },
  {
    name: 'without kid one key must fit',
    refuses: ({ header, fitting }) => header['kid'] === undefined && fitting !== 1,
  },
  {
    name: 'exp is after iat',
    refuses: ({ claims: { exp, iat } }) => typeof exp === 'number' && typeof iat === 'number' && exp <= iat,
  },
  {
    name: 'iat is not in the future',
    refuses: ({ claims: { iat } }) => typeof iat === 'number' && iat > Date.now() / 1000 + 30 - 1,
  },
  {
    name: 'sub and jti are strings',
    refuses: ({ claims }) =>
      [claims['sub'], claims['jti']].some((value) => value !== undefined && typeof value !== 'string'),
  },
  {
    name: 'aud is a string or strings',
    refuses: ({ claims: { aud } }) => Array.isArray(aud) && aud.some((value) => typeof value !== 'string'),
  },
];

async function signedAgreesWithJose(): Promise<Law> {
  const { publicJwk, privateJwk } = await keyPair();
  const [ed, es, rs, ps] = [
    signingPair('EdDSA', 'ed'),
    signingPair('ES256', 'es'),
    signingPair('RS256', 'rs'),
    signingPair('PS256', 'ps'),
  ];
  const signers = { ed, es, rs, ps };
  const sets = {
    'issuer one': [ed.publicJwk, es.publicJwk],
    'issuer two': [rs.publicJwk, ps.publicJwk, { ...ed.publicJwk, kid: 'ed', x: es.publicJwk.x ?? '' }],
  };
  // To jose an EdDSA key is none for Ed25519, the newer name of the same algorithm (RFC 9864).
  // A key without alg is one for both.
  const forJose = Object.entries(sets).map(([name, keys]) => ({
    name,
    set: jose.createLocalJWKSet({ keys: keys.map(({ alg, ...jwk }) => (alg === 'EdDSA' ? jwk : { ...jwk, alg })) }),
  }));
  const verifier = new JWETokenVerifier({
    keys: privateJwk,
    audience: AUDIENCE,
    cache: false,
    trustedIssuers: Object.entries(sets).map(([issuer, keys]) => ({ issuer, jwks: { keys } })),
  });
  const now = Math.floor(Date.now() / 1000);
  const rarely = <T>(usual: T, ...unusual: T[]): fc.Arbitrary<T> =>
    fc.oneof({ weight: 9, arbitrary: fc.constant(usual) }, { weight: 1, arbitrary: fc.constantFrom(...unusual) });
  const arbitrary = fc.record({
    signer: fc.constantFrom('ed', 'ed', 'ed', 'es', 'es', 'rs', 'ps'),
    alg: rarely('own', 'none', 'HS256', 'Ed25519', 'RS256', 'PS256', 'ES256', 'EdDSA', 'RS512', ''),
    kid: rarely<unknown>('own', 'ed', 'es', 'rs', undefined, null, 'unknown'),
    more: rarely<object>(
      {},
      { cty: 'JWT' },
      { cty: null },
      { crit: ['exp'] },
      { crit: ['b64'], b64: true },
      { b64: false },
      { typ: 'at+jwt' },
      { typ: 1 },
      { jwk: ed.publicJwk },
    ),
    iss: rarely<unknown>('own', 'issuer one', 'issuer two', 'issuer three', undefined, ['issuer one']),
    aud: rarely<unknown>(AUDIENCE, [AUDIENCE, 'x'], [AUDIENCE, 1], 'x', undefined, []),
    exp: rarely<unknown>(now + 3600, now - 3600, `${now + 3600}`, undefined, null),
    iat: rarely<unknown>(now, now + 7200, now + 600, undefined, '1'),
    sub: rarely<unknown>('alice', 7, undefined),
    outer: rarely<string | undefined>('JWT', 'jwt', 'JwT', undefined, 'application/jwt'),
    changes: fc.oneof(
      { weight: 4, arbitrary: fc.constant<Edit[]>([]) },
      { weight: 1, arbitrary: fc.array(edits, { minLength: 1, maxLength: 2 }) },
    ),
  });
  return law(
    'what we accept as signed jose verifies, and the reverse but for named policies',
    30,
    arbitrary,
    async ({ signer, alg, kid, more, iss, outer, changes, ...claims }) => {
      const { privateJwk: key } = signers[signer];
      const issuer = signer === 'ed' || signer === 'es' ? 'issuer one' : 'issuer two';
      const head = { alg: alg === 'own' ? key.alg : alg, kid: kid === 'own' ? key.kid : kid, ...more };
      const input = [head, { ...claims, iss: iss === 'own' ? issuer : iss }]
        .map((part) => b64u(JSON.stringify(part)))
        .join('.');
      const options =
        signer === 'ps'
          ? { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 }
          : signer === 'es'
            ? { dsaEncoding: 'ieee-p1363' as const }
            : {};
      const signature = sign(signer === 'ed' ? null : 'sha256', Buffer.from(input), {
        key: createPrivateKey({ key: { ...key }, format: 'jwk' }),
        ...options,
      });
      const inner = changes.reduce(applyEdit, `${input}.${b64u(signature)}`);
      const token = compactEncrypt(Buffer.from(inner), publicJwk, outer === undefined ? {} : { cty: outer });
      if (token.length > 16_384) return;
      const ours = await verdictOf(verifier.authenticate(token));
      const checks = { audience: AUDIENCE, clockTolerance: 30, requiredClaims: ['exp'] };
      const theirs = await Promise.all(
        forJose.map(({ name, set }) => jose.jwtVerify(inner, set, { ...checks, issuer: name }).catch(() => undefined)),
      );
      const verified = theirs.find((result) => result !== undefined);
      if ('accepted' in ours) {
        assert.ok(verified, 'we accept what jose refuses');
        assert.equal(ours.accepted.issuer, verified.payload.iss);
        assert.deepEqual({ ...ours.accepted.user }, { ...verified.payload });
        return;
      }
      assert.deepEqual([ours.refused.code, ours.refused.status], ['invalid_token', 401]);
      if (!verified) return;
      const { payload, protectedHeader } = verified;
      const fitting = Object.values(sets)
        .flat()
        .filter(
          (jwk) => jwk.alg === protectedHeader.alg || (jwk.alg === 'EdDSA' && protectedHeader.alg === 'Ed25519'),
        ).length;
      const reasons = SIGNED_POLICIES.filter(({ refuses }) =>
        refuses({ outer, inner, header: { ...protectedHeader }, claims: { ...payload }, fitting }),
      );
      assert.notDeepEqual(reasons, [], 'jose verifies it, and no policy says why we do not');
    },
  );
}

export async function tokenLaws(): Promise<Law[]> {
  return Promise.all([
    onlyTheOneError(),
    onlyItsOwnText(),
    mintedIsRead(),
    noIntegerIsRounded(),
    copiesAreTrue(),
    agreesWithJose(),
    signedAgreesWithJose(),
  ]);
}
