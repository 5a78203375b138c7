// Single members of keys, each of which has to be looked at. A verifier would refuse most unsound private keys for failing its
// self-test as well; publicJwks and compactDecrypt run none, so that there the arithmetic alone stands in front of OpenSSL.
import {
  compactDecrypt,
  compactEncrypt,
  type Jwk,
  JWETokenVerifier,
  KeyError,
  publicJwks,
  type RsaPrivateJwk,
} from 'mcp-auth-middleware';
import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { it } from 'node:test';
import { keyPair } from './support/support.ts';

type Member = 'n' | 'd' | 'p' | 'q' | 'dp' | 'dq' | 'qi';

const read = (text: string): bigint => BigInt(`0x${Buffer.from(text, 'base64url').toString('hex')}`);
const write = (value: bigint): string => {
  const hex = value.toString(16);
  return Buffer.from(hex.length % 2 ? `0${hex}` : hex, 'hex').toString('base64url');
};

const wrong: Record<string, (key: Record<Member, bigint>) => Partial<Record<Member, bigint>>> = {
  'p is 1 and q the modulus': ({ n }) => ({ p: 1n, q: n }),
  'q is 1, p the modulus and dp all of d': ({ n, d }) => ({ p: n, q: 1n, dp: d }),
  'd, and dp with it, is wrong modulo p - 1 alone': ({ d, p, q }) => ({ d: d + q - 1n, dp: (d + q - 1n) % (p - 1n) }),
  'd, and dq with it, is wrong modulo q - 1 alone': ({ d, p, q }) => ({ d: d + p - 1n, dq: (d + p - 1n) % (q - 1n) }),
  'dp is congruent but not reduced': ({ dp, p }) => ({ dp: dp + p - 1n }),
  'dq is congruent but not reduced': ({ dq, q }) => ({ dq: dq + q - 1n }),
  'qi is congruent but not reduced': ({ qi, p }) => ({ qi: qi + p }),
  'd is congruent but larger than n': ({ n, d, p, q }) => ({
    d: d + (p - 1n) * (q - 1n) * (n / ((p - 1n) * (q - 1n)) + 1n),
  }),
};

for (const [what, change] of Object.entries(wrong)) {
  it(`refuses a private key in which ${what}`, async () => {
    const { privateJwk, publicJwk } = await keyPair();
    const { n, d, p, q, dp, dq, qi } = privateJwk;
    const changed = change({
      n: read(n),
      d: read(d),
      p: read(p),
      q: read(q),
      dp: read(dp),
      dq: read(dq),
      qi: read(qi),
    });
    const key: RsaPrivateJwk = {
      ...privateJwk,
      ...Object.fromEntries(Object.entries(changed).map(([member, value]) => [member, write(value)])),
    };
    const refusal = (error: unknown): boolean => error instanceof KeyError && error.code === 'inconsistent';
    assert.throws(() => publicJwks(key), refusal);
    await assert.rejects(compactDecrypt(compactEncrypt(Buffer.from('{}'), publicJwk), key), refusal);
  });
}

it('publishes the key that comes first when no time has come, wherever it stands in the set', async () => {
  const pairs = await Promise.all(['server', 'other', 'third'].map((name) => keyPair(name)));
  const now = Math.floor(Date.now() / 1000);
  for (const order of [
    [0, 1, 2],
    [2, 1, 0],
    [1, 0, 2],
    [1, 2, 0],
  ]) {
    const keys = order.map((n) => ({ ...(pairs[n] ?? assert.fail()).privateJwk, nbf: now + 600 * (n + 1) }));
    assert.deepEqual(
      publicJwks({ keys }).keys.map(({ kid }) => kid),
      [pairs[0]?.privateJwk.kid],
    );
  }
});

it('publishes and decrypts outside a verifier with a key until its last second, and not after it', async () => {
  const { privateJwk, publicJwk } = await keyPair();
  const token = compactEncrypt(Buffer.from('{}'), publicJwk);
  const now = Math.floor(Date.now() / 1000);
  await compactDecrypt(token, { ...privateJwk, exp: now + 100 });
  assert.deepEqual(publicJwks({ ...privateJwk, exp: now }), { keys: [] });
  await assert.rejects(compactDecrypt(token, { ...privateJwk, exp: now }), {
    name: 'AuthError',
    reason: 'no_key',
    status: 503,
  });
});

const { x = '', y = '' } = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' });
const longer = (text: string): string =>
  Buffer.concat([Buffer.alloc(1), Buffer.from(text, 'base64url')]).toString('base64url');

const issuerKeys: [what: string, change: Partial<Jwk>, usable: boolean][] = [
  ['key_ops are to verify', { key_ops: ['verify'] }, true],
  ['key_ops are to sign', { key_ops: ['sign'] }, false],
  ['x has a leading zero octet', { x: longer(x) }, false],
  ['y has a leading zero octet', { y: longer(y) }, false],
  ['y is padded', { y: `${y}=` }, false],
  ['y is missing', { y: undefined }, false],
];

for (const [what, change, usable] of issuerKeys) {
  it(`${usable ? 'takes' : 'does not take'} an issuer's EC key whose ${what}`, async () => {
    const { privateJwk } = await keyPair();
    const jwks = { keys: [{ kty: 'EC', crv: 'P-256', x, y, ...change }] };
    const trust = (): JWETokenVerifier =>
      new JWETokenVerifier({ keys: privateJwk, audience: 'a', trustedIssuers: [{ issuer: 'i', jwks }] });
    if (usable) assert.ok(trust());
    else assert.throws(trust, { name: 'KeyError', code: 'unsupported' });
  });
}
