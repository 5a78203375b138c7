// Signed and encrypted tokens: only a trusted issuer says who the user is, and nothing else passes for its signature.
import assert from 'node:assert/strict';
import { constants, createHmac, createPrivateKey, type KeyObject, sign } from 'node:crypto';
import { before, describe, it } from 'node:test';
import {
  compactDecrypt as joseDecrypt,
  CompactEncrypt,
  compactVerify,
  exportJWK,
  generateKeyPair as joseKeyPair,
  importJWK,
  SignJWT,
} from 'jose';
import {
  encryptToken,
  type Jwk,
  JWETokenVerifier,
  jwkThumbprint,
  type JwkSet,
  KeyError,
  type PrivateSigningJwk,
  type RefusalReason,
  type RsaPublicJwk,
  type SignatureAlg,
  type TrustedIssuer,
  type VerifierOptions,
} from 'mcp-auth-middleware';
import { keyPair } from './support/support.js';
import {
  base64url,
  type Content,
  keyRefused,
  newPair,
  refused,
  seal,
  SIGNERS,
  signJws,
  untyped,
} from './support/tokens.js';

const ISSUER = 'https://issuer.example';
const AUDIENCE = 'https://server.example/mcp';
const NOW = Math.floor(Date.now() / 1000);
const CLAIMS = { iss: ISSUER, aud: AUDIENCE, sub: 'ada', iat: NOW, exp: NOW + 600 };

interface SigningPair {
  alg: string;
  privateKey: KeyObject;
  publicKey: KeyObject;
  publicJwk: Jwk & { kid: string };
  privateJwk: PrivateSigningJwk;
}

function signingPair(alg: string, kid: string): SigningPair {
  const { privateKey, publicKey } =
    alg === 'ES256'
      ? newPair('ec', { namedCurve: 'P-256' })
      : alg === 'EdDSA'
        ? newPair('ed25519')
        : newPair('rsa', { modulusLength: 2048 });
  const said = { kid, alg, use: 'sig' };
  return {
    alg,
    privateKey,
    publicKey,
    publicJwk: untyped({ ...publicKey.export({ format: 'jwk' }), ...said }),
    privateJwk: untyped({ ...privateKey.export({ format: 'jwk' }), ...said }),
  };
}

const PAIRS = ['RS256', 'PS256', 'ES256', 'EdDSA'].map((alg) => signingPair(alg, alg));
const [rs256, ps256, es256, eddsa] = PAIRS;
assert.ok(rs256 && ps256 && es256 && eddsa);

let keys: JwkSet;
let recipient: RsaPublicJwk;
let strict: JWETokenVerifier;
before(async () => {
  const pair = await keyPair();
  recipient = pair.publicJwk;
  keys = { keys: [pair.privateJwk] };
  strict = trusting([{ issuer: ISSUER, jwks: { keys: PAIRS.map(({ publicJwk }) => publicJwk) } }]);
});

const trusting = (trustedIssuers: TrustedIssuer[], options: VerifierOptions = {}): JWETokenVerifier =>
  new JWETokenVerifier({ keys, trustedIssuers, audience: AUDIENCE, ...options });
const signer =
  (pair: SigningPair, alg = pair.alg) =>
  (input: Buffer): Buffer =>
    SIGNERS[alg]?.(input, pair.privateKey) ?? assert.fail(alg);
/** A JWS by this pair; members of the header may be replaced, or with undefined removed. */
const jws = (pair: SigningPair, header: object = {}, payload: Content = CLAIMS): string =>
  signJws({ alg: pair.alg, kid: pair.publicJwk.kid, ...header }, payload, signer(pair));
const nest = (inner: Content, header: object = { cty: 'JWT' }): string => seal(recipient, { header, plaintext: inner });

describe('a signed and encrypted token', () => {
  for (const pair of PAIRS) {
    it(`is accepted by ${pair.alg}, and says who signed it`, async () => {
      for (const token of [
        nest(jws(pair)),
        await encryptToken({ sub: 'ada' }, recipient, {
          sign: { key: pair.privateJwk, issuer: ISSUER, audience: AUDIENCE },
        }),
      ]) {
        const auth = await strict.authenticate(token);
        assert.deepEqual([auth.user.sub, auth.signed, auth.issuer, auth.keyId], ['ada', true, ISSUER, recipient.kid]);
        assert.equal((await strict.authenticate(token)).issuer, ISSUER, 'from the cache as well');
      }
    });
    it(`goes both ways with jose by ${pair.alg}`, async () => {
      const [privateKey, publicKey] = await Promise.all([
        importJWK(pair.privateJwk, pair.alg),
        importJWK(pair.publicJwk, pair.alg),
      ]);
      const inner = await new SignJWT({ sub: 'ada', role: 'x' })
        .setProtectedHeader({ alg: pair.alg, kid: pair.publicJwk.kid })
        .setIssuer(ISSUER)
        .setAudience(AUDIENCE)
        .setIssuedAt()
        .setExpirationTime('5m')
        .sign(privateKey);
      const theirs = await new CompactEncrypt(Buffer.from(inner))
        .setProtectedHeader({ alg: 'RSA-OAEP-256', enc: 'A256GCM', cty: 'JWT', kid: recipient.kid ?? '' })
        .encrypt(await importJWK(recipient, 'RSA-OAEP-256'));
      assert.equal((await strict.verifyToken(theirs))['role'], 'x');

      const ours = await encryptToken({ sub: 'ada' }, recipient, {
        expiresIn: 60,
        sign: { key: pair.privateJwk, issuer: ISSUER, audience: [AUDIENCE, 'b'] },
      });
      const opened = await joseDecrypt(ours, await importJWK(keys.keys[0] ?? {}, 'RSA-OAEP-256'));
      assert.equal(opened.protectedHeader.cty, 'JWT');
      const { payload, protectedHeader } = await compactVerify(opened.plaintext, publicKey);
      assert.deepEqual(protectedHeader, { alg: pair.alg, kid: pair.alg, typ: 'JWT' });
      const { iat, ...claims } = JSON.parse(Buffer.from(payload).toString());
      assert.deepEqual(claims, { iss: ISSUER, aud: [AUDIENCE, 'b'], exp: iat + 60, sub: 'ada' });
    });
  }
  it('is accepted with a key made by jose', async () => {
    for (const alg of ['RS256', 'PS256', 'ES256', 'EdDSA', 'Ed25519']) {
      const { privateKey, publicKey } = await joseKeyPair(alg, { extractable: true });
      const [key, published] = await Promise.all([exportJWK(privateKey), exportJWK(publicKey)]);
      const token = await encryptToken({ sub: 'ada' }, recipient, {
        sign: { key: untyped({ ...key, alg }), issuer: ISSUER, audience: AUDIENCE },
      });
      // Neither key has a kid: the token names the thumbprint, which is the kid of such a key on either side.
      for (const kid of [undefined, jwkThumbprint(untyped(published))]) {
        const owner = trusting([{ issuer: ISSUER, jwks: { keys: [untyped({ ...published, alg, kid })] } }]);
        assert.equal((await owner.verifyToken(token)).sub, 'ada', alg);
      }
    }
  });
  for (const cty of ['JWT', 'jwt', 'Jwt'])
    it(`is one with cty ${cty}`, async () =>
      assert.equal((await strict.verifyToken(nest(jws(es256), { cty }))).sub, 'ada'));
  it('may say any typ outside and inside', async () => {
    assert.equal(
      (await strict.verifyToken(nest(jws(es256, { typ: 'at+jwt' }), { cty: 'JWT', typ: 'JWT' }))).sub,
      'ada',
    );
  });
});

describe('confusion of the two levels', () => {
  const trustsNobody = (): JWETokenVerifier => new JWETokenVerifier({ keys });
  const attacker = signingPair('EdDSA', 'EdDSA');
  const PLAIN: [name: string, token: () => string][] = [
    ['claims without a signature', () => seal(recipient, { plaintext: CLAIMS })],
    ['claims without a signature, called a JWT', () => nest(CLAIMS)],
    ['a signed token that does not say cty', () => seal(recipient, { plaintext: jws(es256) })],
    ['a signed token called JOSE', () => nest(jws(es256), { cty: 'JOSE' })],
    ['a signed token called application/jwt', () => nest(jws(es256), { cty: 'application/jwt' })],
    ['a signed token called JWT with a space', () => nest(jws(es256), { cty: 'JWT ' })],
    ['a signed token called JWT in typ', () => nest(jws(es256), { typ: 'JWT' })],
    ['an empty plaintext', () => nest('')],
    ['a token that says it is signed', () => seal(recipient, { plaintext: { ...CLAIMS, signed: true, cty: 'JWT' } })],
  ];
  for (const [name, token] of PLAIN)
    it(`is refused where a signature is required: ${name}`, () => refused(strict.verifyToken(token()), 'signature'));

  it('is refused where none is required: a signed token is never read unverified', async () => {
    assert.equal((await trustsNobody().verifyToken(seal(recipient, { plaintext: CLAIMS }))).sub, 'ada');
    for (const cty of ['JWT', 'jwt', 'jWt']) {
      await refused(trustsNobody().verifyToken(nest(jws(es256), { cty })), 'signature');
      await refused(trustsNobody().verifyToken(nest(jws(attacker), { cty })), 'signature');
      await refused(trustsNobody().verifyToken(nest(CLAIMS, { cty })), 'signature');
    }
    await refused(trustsNobody().verifyToken(seal(recipient, { plaintext: jws(es256) })), 'claims');
  });
  it('is refused on both levels: a signed token that is not encrypted', async () => {
    for (const owner of [strict, trustsNobody()]) {
      await refused(owner.verifyToken(jws(es256)), 'malformed');
      await refused(owner.verifyToken(`${jws(es256)}..`), 'malformed');
    }
  });
});

describe('a signature', () => {
  const attacker = signingPair('EdDSA', 'EdDSA');
  const attackerRsa = signingPair('RS256', 'RS256');
  const hmac =
    (secret: string | Buffer) =>
    (input: Buffer): Buffer =>
      createHmac('sha256', secret).update(input).digest();
  const part = (text: string, index: number, change: (segment: string) => string): string =>
    text
      .split('.')
      .map((segment, other) => (other === index ? change(segment) : segment))
      .join('.');
  const derSign = (input: Buffer): Buffer => sign('sha256', input, es256.privateKey);
  const pss =
    (saltLength: number) =>
    (input: Buffer): Buffer =>
      sign('sha256', input, { key: ps256.privateKey, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength });
  const raised = (input: Buffer): Buffer => {
    // S + L: the same scalar to who does not check its range (RFC 8032 §5.1.7).
    const signature = signer(eddsa)(input);
    const order = 2n ** 252n + 27742317777372353535851937790883648493n;
    const s = BigInt(`0x${Buffer.from(signature.subarray(32)).reverse().toString('hex')}`) + order;
    return Buffer.concat([signature.subarray(0, 32), Buffer.from(s.toString(16).padStart(64, '0'), 'hex').reverse()]);
  };

  const REFUSED: [name: string, inner: () => Content][] = [
    ['none', () => signJws({ alg: 'none' }, CLAIMS, () => Buffer.of())],
    ['none, with the kid of a key', () => signJws({ alg: 'none', kid: 'ES256' }, CLAIMS, () => Buffer.of())],
    ['None', () => signJws({ alg: 'None', kid: 'ES256' }, CLAIMS, () => Buffer.of())],
    ['NONE', () => signJws({ alg: 'NONE' }, CLAIMS, () => Buffer.of())],
    ['none over a real signature', () => jws(es256, { alg: 'none' })],
    ['an empty alg', () => jws(es256, { alg: '' })],
    ['no alg', () => jws(es256, { alg: undefined })],
    ['alg null', () => jws(es256, { alg: null })],
    ['alg an array', () => jws(es256, { alg: ['ES256'] })],
    ['alg in lower case', () => jws(es256, { alg: 'es256' })],
    ['alg a name every object has', () => jws(es256, { alg: 'constructor' })],
    [
      'HMAC with the public key in PEM',
      () =>
        signJws({ alg: 'HS256', kid: 'RS256' }, CLAIMS, hmac(rs256.publicKey.export({ type: 'spki', format: 'pem' }))),
    ],
    [
      'HMAC with the public key in DER',
      () =>
        signJws({ alg: 'HS256', kid: 'RS256' }, CLAIMS, hmac(rs256.publicKey.export({ type: 'spki', format: 'der' }))),
    ],
    [
      'HMAC with the modulus',
      () => signJws({ alg: 'HS256', kid: 'RS256' }, CLAIMS, hmac(Buffer.from(rs256.publicJwk.n ?? '', 'base64url'))),
    ],
    [
      'HMAC with the public point',
      () => signJws({ alg: 'HS256', kid: 'EdDSA' }, CLAIMS, hmac(Buffer.from(eddsa.publicJwk.x ?? '', 'base64url'))),
    ],
    ['HMAC with an empty secret', () => signJws({ alg: 'HS256' }, CLAIMS, hmac(''))],
    [
      'HMAC called by the name of the key',
      () =>
        signJws({ alg: 'RS256', kid: 'RS256' }, CLAIMS, hmac(rs256.publicKey.export({ type: 'spki', format: 'pem' }))),
    ],
    ['another key under a known kid', () => jws(attacker)],
    ['another key with itself in jwk', () => jws(attacker, { jwk: attacker.publicJwk })],
    ['another key with itself in jwk, without kid', () => jws(attacker, { jwk: attacker.publicJwk, kid: undefined })],
    [
      'another key with jku and x5u',
      () => jws(attacker, { jku: 'http://127.0.0.1:9/', x5u: 'http://127.0.0.1:9/', x5c: ['AAAA'] }),
    ],
    ['another key without kid', () => jws(attackerRsa, { kid: undefined })],
    ['RS256 by a key for PS256', () => signJws({ alg: 'RS256', kid: 'PS256' }, CLAIMS, signer(ps256, 'RS256'))],
    ['PS256 by a key for RS256', () => signJws({ alg: 'PS256', kid: 'RS256' }, CLAIMS, signer(rs256, 'PS256'))],
    ['RS256 by a key for PS256, without kid', () => signJws({ alg: 'RS256' }, CLAIMS, signer(ps256, 'RS256'))],
    ['PSS called RS256', () => signJws({ alg: 'RS256', kid: 'RS256' }, CLAIMS, signer(rs256, 'PS256'))],
    ['PKCS #1 v1.5 called PS256', () => signJws({ alg: 'PS256', kid: 'PS256' }, CLAIMS, signer(ps256, 'RS256'))],
    [
      'RS512',
      () => signJws({ alg: 'RS512', kid: 'RS256' }, CLAIMS, (input) => sign('sha512', input, rs256.privateKey)),
    ],
    [
      'RS256 over SHA-512',
      () => signJws({ alg: 'RS256', kid: 'RS256' }, CLAIMS, (input) => sign('sha512', input, rs256.privateKey)),
    ],
    [
      'RS256 over SHA-1',
      () => signJws({ alg: 'RS256', kid: 'RS256' }, CLAIMS, (input) => sign('sha1', input, rs256.privateKey)),
    ],
    ...[0, 20, 31, 33, 64].map((salt): [string, () => string] => [
      `PS256 with a salt of ${salt} octets`,
      () => signJws({ alg: 'PS256', kid: 'PS256' }, CLAIMS, pss(salt)),
    ]),
    [
      'an RSA signature an octet shorter',
      () => signJws({ alg: 'RS256', kid: 'RS256' }, CLAIMS, (input) => signer(rs256)(input).subarray(1)),
    ],
    [
      'an RSA signature with a zero octet in front',
      () =>
        signJws({ alg: 'RS256', kid: 'RS256' }, CLAIMS, (input) => Buffer.concat([Buffer.of(0), signer(rs256)(input)])),
    ],
    ['ES256 in DER', () => signJws({ alg: 'ES256', kid: 'ES256' }, CLAIMS, derSign)],
    ['ES256 of zeros', () => signJws({ alg: 'ES256', kid: 'ES256' }, CLAIMS, () => Buffer.alloc(64))],
    [
      'ES256 of 63 octets',
      () => signJws({ alg: 'ES256', kid: 'ES256' }, CLAIMS, (input) => signer(es256)(input).subarray(0, 63)),
    ],
    [
      'ES256 of 65 octets',
      () =>
        signJws({ alg: 'ES256', kid: 'ES256' }, CLAIMS, (input) => Buffer.concat([signer(es256)(input), Buffer.of(0)])),
    ],
    ['ES256 called ES384', () => jws(es256, { alg: 'ES384' })],
    ['ES256 called ES256K', () => jws(es256, { alg: 'ES256K' })],
    ['Ed25519 with a scalar out of range', () => signJws({ alg: 'EdDSA', kid: 'EdDSA' }, CLAIMS, raised)],
    ['Ed25519 of zeros', () => signJws({ alg: 'EdDSA', kid: 'EdDSA' }, CLAIMS, () => Buffer.alloc(64))],
    ['Ed25519 called Ed448', () => jws(eddsa, { alg: 'Ed448' })],
    ['an empty signature', () => part(jws(es256), 2, () => '')],
    ['a signature cut off with its dot', () => jws(es256).split('.').slice(0, 2).join('.')],
    ['one segment', () => jws(es256).replaceAll('.', '')],
    ['four segments', () => `${jws(es256)}.`],
    ['five segments', () => `${jws(es256)}.AAAA.AAAA`],
    [
      'the signature of another token',
      () => part(jws(es256, {}, { ...CLAIMS, sub: 'eve' }), 2, () => jws(es256).split('.')[2] ?? ''),
    ],
    ['the payload of another token', () => part(jws(es256), 1, () => base64url({ ...CLAIMS, sub: 'eve' }))],
    ['another header', () => part(jws(es256), 0, () => base64url({ alg: 'ES256', kid: 'ES256', typ: 'x' }))],
    ['padding', () => part(jws(es256), 2, (text) => `${text}==`)],
    ['white space inside', () => part(jws(es256), 1, (text) => `${text.slice(0, 5)}\n${text.slice(5)}`)],
    ['a line feed after', () => `${jws(es256)}\n`],
    ['a space before', () => ` ${jws(es256)}`],
    ['a byte order mark', () => `\uFEFF${jws(es256)}`],
    ['quotes', () => JSON.stringify(jws(es256))],
    [
      'standard base64',
      () => {
        // Other claims each time: where ECDSA is deterministic (RFC 6979), as on Deno, one text has one signature.
        for (let jti = 0; ; jti++) {
          const text = jws(es256, {}, { ...CLAIMS, jti: String(jti) });
          if (/[-_]/.test(text.split('.')[2] ?? ''))
            return part(text, 2, (signature) => signature.replaceAll('-', '+').replaceAll('_', '/'));
        }
      },
    ],
    [
      'the flattened JSON serialization',
      () => {
        const [head, payload, signature] = jws(es256).split('.');
        return { protected: head, payload, signature };
      },
    ],
    [
      'the general JSON serialization',
      () => {
        const [head, payload, signature] = jws(es256).split('.');
        return { payload, signatures: [{ protected: head, signature }] };
      },
    ],
    ['UTF-16', () => Buffer.from(jws(es256), 'utf16le')],
    ['crit', () => jws(es256, { crit: ['exp'], exp: 1 })],
    ['an empty crit', () => jws(es256, { crit: [] })],
    [
      'an unencoded payload (b64)',
      () => signJws({ alg: 'ES256', kid: 'ES256', b64: false, crit: ['b64'] }, CLAIMS, signer(es256)),
    ],
    ['kid a number', () => jws(es256, { kid: 1 })],
    ['kid null', () => jws(es256, { kid: null })],
    ['kid an array', () => jws(es256, { kid: ['ES256'] })],
    ['an unknown kid', () => jws(es256, { kid: 'another' })],
    ['the kid of another key', () => jws(es256, { kid: 'EdDSA' })],
    ['the kid of another key of its kind', () => jws(rs256, { kid: 'PS256' })],
    ['an empty kid', () => jws(es256, { kid: '' })],
    ['kid __proto__', () => jws(es256, { kid: '__proto__' })],
    ['a header that is an array', () => signJws([], CLAIMS, signer(es256))],
    ['a header that is no JSON', () => signJws('alg', CLAIMS, signer(es256))],
    [
      'a header with a byte order mark',
      () => signJws(`\uFEFF${JSON.stringify({ alg: 'ES256', kid: 'ES256' })}`, CLAIMS, signer(es256)),
    ],
    ['a second nesting: a signed token in a signed token', () => jws(es256, { cty: 'JWT' }, jws(es256))],
    ['a second nesting by name only', () => jws(es256, { cty: 'JWT' })],
    ['a second nesting in lower case', () => jws(es256, { cty: 'jwt' })],
    ['another type of content', () => jws(es256, { cty: 'json' })],
    ['a second nesting: an encrypted token in the encrypted token', () => nest(jws(es256))],
    ['nothing', () => '..'],
  ];
  for (const [name, inner] of REFUSED)
    it(`is refused: ${name}`, () => refused(strict.verifyToken(nest(inner())), 'signature'));

  it('of the JWS inside a JWS that names no cty is not looked at: its payload is no claims', async () => {
    await refused(strict.verifyToken(nest(jws(es256, {}, jws(es256)))), 'claims');
    await refused(strict.verifyToken(nest(jws(es256, {}, nest(jws(es256))))), 'claims');
  });
  it('by the encryption key is refused, which anyone could ask a server for that does both', async () => {
    const server = await keyPair();
    const { kid } = server.publicJwk;
    const signing = createPrivateKey({ key: { ...server.privateJwk }, format: 'jwk' });
    for (const alg of ['RS256', 'PS256']) {
      for (const header of [{ alg, kid }, { alg }, { alg, kid: alg }]) {
        await refused(
          strict.verifyToken(nest(signJws(header, CLAIMS, (input) => SIGNERS[alg]?.(input, signing) ?? assert.fail()))),
          'signature',
          JSON.stringify(header),
        );
      }
    }
    keyRefused(
      () => trusting([{ issuer: ISSUER, jwks: { keys: [server.publicJwk] } }]),
      'unsupported',
      /no usable key for signatures \(key 1: "use" is not sig\)$/,
    );
  });
});

describe('the claims of a signed token', () => {
  const REFUSED: [name: string, change: object, reason: RefusalReason][] = [
    ['no exp', { exp: undefined }, 'claims'],
    ['exp of the wrong type', { exp: String(NOW + 600) }, 'claims'],
    ['expired', { iat: NOW - 700, exp: NOW - 60 }, 'expired'],
    ['not valid yet', { nbf: NOW + 300 }, 'not_yet_valid'],
    ['no aud', { aud: undefined }, 'audience'],
    ['an empty aud', { aud: [] }, 'audience'],
    ['for another recipient, who encrypted it again', { aud: 'https://other.example/mcp' }, 'audience'],
    ['no iss', { iss: undefined }, 'claims'],
    ['an empty iss', { iss: '' }, 'issuer'],
    ['iss null', { iss: null }, 'claims'],
    ['cnf', { cnf: { jkt: 'x' } }, 'cnf'],
    ['an integer beyond 2^53', { id: 2 ** 53 }, 'unsafe_integer'],
    ['another iss', { iss: 'https://other.example' }, 'issuer'],
    ['iss with a slash more', { iss: `${ISSUER}/` }, 'issuer'],
    ['iss in upper case', { iss: ISSUER.toUpperCase() }, 'issuer'],
    ['iss an array', { iss: [ISSUER] }, 'claims'],
    ['sub a number', { sub: 1 }, 'claims'],
    ['exp not after iat', { iat: NOW + 10, exp: NOW + 10 }, 'claims'],
  ];
  for (const [name, change, reason] of REFUSED)
    it(`are refused: ${name}`, () =>
      refused(strict.verifyToken(nest(jws(es256, {}, { ...CLAIMS, ...change }))), reason));
  for (const [name, payload] of [
    ['no JSON', 'x'],
    ['an array', [CLAIMS]],
    ['a string', '"x"'],
    ['with a byte order mark', `\uFEFF${JSON.stringify(CLAIMS)}`],
    ['empty', ''],
    ['1e999', `{"iss":"${ISSUER}","a":1e999}`],
  ] as const) {
    it(`are refused: ${name}`, () => refused(strict.verifyToken(nest(jws(es256, {}, payload))), 'claims'));
  }
  it('are judged only under the signature of the issuer they name: the unknown is so whatever signed', async () => {
    const attacker = signingPair('ES256', 'ES256');
    const by = (pair: SigningPair, change: object): Promise<unknown> =>
      strict.verifyToken(nest(jws(pair, {}, { ...CLAIMS, ...change })));
    for (const change of [{ exp: 1 }, { aud: 'them' }, { aud: undefined }, { nbf: NOW + 900 }, { exp: undefined }])
      await refused(by(attacker, change), 'signature', JSON.stringify(change));
    for (const pair of [attacker, es256]) {
      await refused(by(pair, { iss: 'them' }), 'issuer');
      // What is no claims set at all is the uniform refusal, whoever signed it.
      await refused(by(pair, { sub: 1 }), 'claims');
    }
  });
  it('must name the issuer whose keys verify them, for nobody else’s keys are tried', async () => {
    const owner = trusting([
      { issuer: ISSUER, jwks: { keys: [es256.publicJwk] } },
      { issuer: 'https://other.example', jwks: { keys: [eddsa.publicJwk] } },
    ]);
    for (const header of [{}, { kid: undefined }]) {
      await refused(owner.verifyToken(nest(jws(eddsa, header))), 'signature');
      await refused(
        owner.verifyToken(nest(jws(es256, header, { ...CLAIMS, iss: 'https://other.example' }))),
        'signature',
      );
      await refused(owner.verifyToken(nest(jws(es256, header, { ...CLAIMS, iss: undefined }))), 'claims');
    }
  });
  it('hold the user in a member, under iss, aud and exp of the whole', async () => {
    const owner = trusting([{ issuer: ISSUER, jwks: { keys: [es256.publicJwk] } }], { claimsMember: 'data' });
    const { user, issuer, expiresAt } = await owner.authenticate(
      nest(jws(es256, {}, { ...CLAIMS, data: { sub: 'grace', iss: 'x', aud: 'y', exp: 1 } })),
    );
    assert.deepEqual([user.sub, issuer, expiresAt], ['grace', ISSUER, CLAIMS.exp]);
    await refused(owner.verifyToken(nest(jws(es256, {}, { ...CLAIMS, iss: 'x', data: { iss: ISSUER } }))), 'issuer');
    await refused(
      owner.verifyToken(nest(jws(es256, {}, { ...CLAIMS, aud: 'x', data: { aud: AUDIENCE } }))),
      'audience',
    );
    await refused(owner.verifyToken(nest(jws(es256, {}, CLAIMS))), 'claims');
  });
});

describe('several issuers', () => {
  const OTHER = 'https://other.example';
  const other = signingPair('ES256', 'ES256');
  const by = (pair: SigningPair, iss: string, header: object = {}): string =>
    nest(jws(pair, header, { ...CLAIMS, iss }));

  it('each vouch for themselves alone', async () => {
    const owner = trusting([
      { issuer: ISSUER, jwks: { keys: [rs256.publicJwk] } },
      { issuer: OTHER, jwks: { keys: [eddsa.publicJwk] } },
    ]);
    for (const [pair, iss] of [
      [rs256, ISSUER],
      [eddsa, OTHER],
    ] as const) {
      for (const header of [{}, { kid: undefined }])
        assert.equal((await owner.authenticate(by(pair, iss, header))).issuer, iss);
    }
    for (const [pair, iss] of [
      [rs256, OTHER],
      [eddsa, ISSUER],
    ] as const) {
      for (const header of [{}, { kid: undefined }])
        await refused(owner.verifyToken(by(pair, iss, header)), 'signature');
    }
  });
  it('may share a kid', async () => {
    for (const order of [
      [0, 1],
      [1, 0],
    ] as const) {
      const issuers = [
        { issuer: ISSUER, jwks: { keys: [es256.publicJwk] } },
        { issuer: OTHER, jwks: { keys: [other.publicJwk] } },
      ];
      const owner = trusting(order.flatMap((index) => issuers[index] ?? []));
      for (const [pair, iss] of [
        [es256, ISSUER],
        [other, OTHER],
      ] as const) {
        for (const header of [{}, { kid: undefined }])
          assert.equal((await owner.authenticate(by(pair, iss, header))).issuer, iss);
      }
      await refused(owner.verifyToken(by(es256, OTHER)), 'signature');
      await refused(owner.verifyToken(by(other, ISSUER)), 'signature');
    }
  });
  it('may share a key, and each token then is of the issuer it names', async () => {
    const owner = trusting([ISSUER, OTHER].map((issuer) => ({ issuer, jwks: { keys: [es256.publicJwk] } })));
    for (const iss of [ISSUER, OTHER]) assert.equal((await owner.authenticate(by(es256, iss))).issuer, iss);
    await refused(owner.verifyToken(by(es256, 'https://third.example')), 'issuer');
  });
  it('may have audiences of their own', async () => {
    const owner = trusting([
      { issuer: ISSUER, jwks: { keys: [es256.publicJwk] }, audience: ['own'] },
      { issuer: OTHER, jwks: { keys: [other.publicJwk] } },
    ]);
    const aimed = (pair: SigningPair, iss: string, aud: string): string => nest(jws(pair, {}, { ...CLAIMS, iss, aud }));
    assert.equal((await owner.verifyToken(aimed(es256, ISSUER, 'own'))).aud, 'own');
    assert.equal((await owner.verifyToken(aimed(other, OTHER, AUDIENCE))).aud, AUDIENCE);
    await refused(owner.verifyToken(aimed(es256, ISSUER, AUDIENCE)), 'audience');
    await refused(owner.verifyToken(aimed(other, OTHER, 'own')), 'audience');
  });
});

describe('which key and algorithm', () => {
  const unsaid = ({ publicJwk: { alg: _alg, ...jwk } }: SigningPair): Jwk => jwk;
  const owner = (jwks: Jwk[], algorithms?: SignatureAlg[]): JWETokenVerifier =>
    trusting([{ issuer: ISSUER, jwks: { keys: jwks }, ...(algorithms && { algorithms }) }]);
  const token = (pair: SigningPair, alg: string, header: object = {}): string =>
    nest(signJws({ alg, kid: pair.publicJwk.kid, ...header }, CLAIMS, signer(pair, alg === 'Ed25519' ? 'EdDSA' : alg)));

  it('Ed25519 and EdDSA are one', async () => {
    for (const keyAlg of ['EdDSA', 'Ed25519', undefined]) {
      for (const alg of ['EdDSA', 'Ed25519']) {
        for (const algorithms of [undefined, ['EdDSA'], ['Ed25519']] satisfies (SignatureAlg[] | undefined)[]) {
          assert.equal(
            (await owner([{ ...eddsa.publicJwk, alg: keyAlg }], algorithms).verifyToken(token(eddsa, alg))).sub,
            'ada',
          );
        }
      }
    }
  });
  const CASES: [
    name: string,
    key: Jwk,
    algorithms: SignatureAlg[] | undefined,
    accepted: string,
    rejected: string,
    pair: SigningPair,
  ][] = [
    ['an RSA key without alg is for RS256', unsaid(rs256), undefined, 'RS256', 'PS256', rs256],
    [
      'an RSA key without alg is for PS256 where algorithms has only that one for it',
      unsaid(rs256),
      ['ES256', 'PS256'],
      'PS256',
      'RS256',
      rs256,
    ],
    [
      'an RSA key without alg is for RS256 where algorithms has only that one for it',
      unsaid(rs256),
      ['EdDSA', 'RS256'],
      'RS256',
      'PS256',
      rs256,
    ],
    [
      'an RSA key for PS256 stays so where algorithms has both',
      ps256.publicJwk,
      ['RS256', 'PS256'],
      'PS256',
      'RS256',
      ps256,
    ],
  ];
  for (const [name, key, algorithms, accepted, rejected, pair] of CASES) {
    it(name, async () => {
      for (const header of [{}, { kid: undefined }]) {
        assert.equal((await owner([key], algorithms).verifyToken(token(pair, accepted, header))).sub, 'ada');
        await refused(owner([key], algorithms).verifyToken(token(pair, rejected, header)), 'signature');
      }
    });
  }
  it('an RSA key without alg is for both where algorithms has both, and no key signs in any other', async () => {
    for (const algorithms of [
      ['PS256', 'RS256'],
      ['RS256', 'ES256', 'PS256'],
    ] satisfies SignatureAlg[][]) {
      const both = owner([unsaid(rs256)], algorithms);
      for (const header of [{}, { kid: undefined }]) {
        for (const alg of ['RS256', 'PS256'])
          assert.equal((await both.verifyToken(token(rs256, alg, header))).sub, 'ada', alg);
        for (const [said, made] of [
          ['RS256', 'PS256'],
          ['PS256', 'RS256'],
          ['RS512', 'RS256'],
          ['ES256', 'RS256'],
        ] as const) {
          const crossed = signJws({ alg: said, kid: 'RS256', ...header }, CLAIMS, signer(rs256, made));
          await refused(both.verifyToken(nest(crossed)), 'signature', `${made} called ${said}`);
        }
      }
    }
  });
  it('EC and OKP keys without alg are for ES256 and EdDSA', async () => {
    const both = owner([unsaid(es256), unsaid(eddsa)]);
    for (const pair of [es256, eddsa]) assert.equal((await both.verifyToken(token(pair, pair.alg))).sub, 'ada');
  });
  it('a key whose algorithm is not among those allowed is none', async () => {
    const allowed = owner([rs256.publicJwk, es256.publicJwk], ['ES256']);
    assert.equal((await allowed.verifyToken(token(es256, 'ES256'))).sub, 'ada');
    await refused(allowed.verifyToken(token(rs256, 'RS256')), 'signature');
    for (const jwk of [rs256.publicJwk, unsaid(rs256)])
      keyRefused(() => owner([jwk], ['ES256']), 'unsupported', /\(key 1: its algorithm is not in "algorithms"\)$/);
  });
  it('a token without kid is taken only when exactly one key fits', async () => {
    const nameless = (pair: SigningPair): string => token(pair, pair.alg, { kid: undefined });
    const second = signingPair('ES256', 'second');
    assert.equal((await owner([es256.publicJwk]).verifyToken(nameless(es256))).sub, 'ada');
    assert.equal(
      (await owner([es256.publicJwk, eddsa.publicJwk, rs256.publicJwk, ps256.publicJwk]).verifyToken(nameless(es256)))
        .sub,
      'ada',
      'the others are for other algorithms',
    );
    for (const order of [
      [es256, second],
      [second, es256],
    ]) {
      const two = owner(order.map(({ publicJwk }) => publicJwk));
      await refused(two.verifyToken(nameless(es256)), 'signature');
      await refused(two.verifyToken(nameless(second)), 'signature');
      for (const pair of order) assert.equal((await two.verifyToken(token(pair, 'ES256'))).sub, 'ada', 'with kid');
    }
    const { kid: _kid, ...unnamed } = es256.publicJwk;
    assert.equal((await owner([unnamed]).verifyToken(nameless(es256))).sub, 'ada');
    await refused(owner([unnamed]).verifyToken(token(es256, 'ES256')), 'signature', 'a kid that no key has');
  });
  it('any of several keys under one kid', async () => {
    const second = signingPair('ES256', 'ES256');
    const both = owner([second.publicJwk, es256.publicJwk]);
    for (const pair of [es256, second]) assert.equal((await both.verifyToken(token(pair, 'ES256'))).sub, 'ada');
  });

  const p384 = newPair('ec', { namedCurve: 'P-384' }).publicKey.export({ format: 'jwk' });
  const weak = newPair('rsa', { modulusLength: 1024 }).publicKey.export({ format: 'jwk' });
  const e3 = newPair('rsa', { modulusLength: 2048, publicExponent: 3 }).publicKey.export({ format: 'jwk' });
  let lossy = signingPair('ES256', 'lossy').publicJwk;
  while (Buffer.from(lossy.x ?? '', 'base64url')[0] !== 0) lossy = signingPair('ES256', 'lossy').publicJwk;
  const SKIPPED: [name: string, jwk: unknown][] = [
    ['an encryption key', { ...rs256.publicJwk, use: 'enc', alg: 'RSA-OAEP-256' }],
    ['use enc', { ...rs256.publicJwk, use: 'enc' }],
    ['use null', { ...rs256.publicJwk, use: null }],
    ['key_ops without verify', { ...rs256.publicJwk, key_ops: ['sign'] }],
    ['key_ops a string', { ...rs256.publicJwk, key_ops: 'verify' }],
    ['another RSA algorithm', { ...rs256.publicJwk, alg: 'RS512' }],
    ['alg none', { ...rs256.publicJwk, alg: 'none' }],
    ['alg HS256', { ...rs256.publicJwk, alg: 'HS256' }],
    ['alg of another type of key', { ...rs256.publicJwk, alg: 'ES256' }],
    ['alg null', { ...rs256.publicJwk, alg: null }],
    ['P-384', { ...p384, alg: 'ES384' }],
    ['P-384 called ES256', { ...p384, alg: 'ES256' }],
    ['P-384 without alg', p384],
    ['P-256 called P-384', { ...es256.publicJwk, crv: 'P-384' }],
    ['a point off the curve', { ...es256.publicJwk, y: es256.publicJwk.x }],
    [
      'a short coordinate',
      { ...es256.publicJwk, x: base64url(Buffer.from(es256.publicJwk.x ?? '', 'base64url').subarray(1)) },
    ],
    [
      'a coordinate with a zero octet in front',
      {
        ...es256.publicJwk,
        x: base64url(Buffer.concat([Buffer.of(0), Buffer.from(es256.publicJwk.x ?? '', 'base64url')])),
      },
    ],
    [
      'a coordinate that lost its zero octet in front',
      { ...lossy, x: base64url(Buffer.from(lossy.x ?? '', 'base64url').subarray(1)) },
    ],
    ['Ed25519 of 33 octets', { ...eddsa.publicJwk, x: base64url(Buffer.alloc(33, 1)) }],
    ['a padded coordinate', { ...es256.publicJwk, x: `${es256.publicJwk.x}=` }],
    ['no y', { ...es256.publicJwk, y: undefined }],
    ['Ed448', { kty: 'OKP', crv: 'Ed448', x: base64url(Buffer.alloc(57, 1)) }],
    ['X25519', { kty: 'OKP', crv: 'X25519', x: eddsa.publicJwk.x }],
    ['Ed25519 of 31 octets', { ...eddsa.publicJwk, x: base64url(Buffer.alloc(31, 1)) }],
    ['1024 bits', { ...weak, alg: 'RS256' }],
    ['e = 3', { ...e3, alg: 'RS256' }],
    ['e = 1', { ...rs256.publicJwk, e: 'AQ' }],
    [
      'n with a leading zero',
      {
        ...rs256.publicJwk,
        n: base64url(Buffer.concat([Buffer.of(0), Buffer.from(rs256.publicJwk.n ?? '', 'base64url')])),
      },
    ],
    ['no n', { ...rs256.publicJwk, n: undefined }],
    ['kid a number', { ...rs256.publicJwk, kid: 1 }],
    ['an unknown kty', { kty: 'AKP', alg: 'ML-DSA-44', pub: 'AAAA' }],
    ['kty a name every object has', { ...rs256.publicJwk, kty: 'constructor' }],
    ['an empty object', {}],
  ];
  /** What the refusal says of each, where nothing else is in the set. */
  const WHY: Record<string, string> = {
    'an encryption key': '"use" is not sig',
    'use enc': '"use" is not sig',
    'use null': '"use" is not sig',
    'key_ops without verify': '"key_ops" lacks verify',
    'key_ops a string': '"key_ops" lacks verify',
    'another RSA algorithm': 'does not fit the key',
    'alg none': 'does not fit the key',
    'alg HS256': 'does not fit the key',
    'alg of another type of key': 'does not fit the key',
    'alg null': 'does not fit the key',
    'P-384': 'are none of RSA, EC P-256 and OKP Ed25519',
    'P-384 called ES256': 'are none of RSA, EC P-256 and OKP Ed25519',
    'P-384 without alg': 'are none of RSA, EC P-256 and OKP Ed25519',
    'P-256 called P-384': 'are none of RSA, EC P-256 and OKP Ed25519',
    'a point off the curve': 'is no key that OpenSSL can load',
    'a short coordinate': 'a coordinate is not 32 octets in base64url',
    'a coordinate with a zero octet in front': 'a coordinate is not 32 octets in base64url',
    'a coordinate that lost its zero octet in front': 'a coordinate is not 32 octets in base64url',
    'Ed25519 of 33 octets': 'a coordinate is not 32 octets in base64url',
    'a padded coordinate': 'a coordinate is not 32 octets in base64url',
    'no y': '"y" must be a string',
    Ed448: 'are none of RSA, EC P-256 and OKP Ed25519',
    X25519: 'are none of RSA, EC P-256 and OKP Ed25519',
    'Ed25519 of 31 octets': 'a coordinate is not 32 octets in base64url',
    '1024 bits': 'the modulus has 1024 bits',
    'e = 3': 'e must be 65537',
    'e = 1': 'e must be 65537',
    'n with a leading zero': '"n" must be',
    'no n': '"n" must be',
    'kid a number': '"kid" is not a string',
    'an unknown kty': 'are none of RSA, EC P-256 and OKP Ed25519',
    'kty a name every object has': 'are none of RSA, EC P-256 and OKP Ed25519',
    'an empty object': 'are none of RSA, EC P-256 and OKP Ed25519',
  };
  for (const [name, jwk] of SKIPPED) {
    it(`a set may hold what is not for this, and it is skipped: ${name}`, async () => {
      const mixed = owner([untyped(jwk), es256.publicJwk]);
      assert.equal((await mixed.verifyToken(token(es256, 'ES256'))).sub, 'ada');
      await refused(mixed.verifyToken(token(rs256, 'RS256')), 'signature');
      assert.throws(
        () => owner([untyped(jwk)]),
        (error) =>
          error instanceof KeyError &&
          error.code === 'unsupported' &&
          error.message.includes('has no usable key for signatures (key 1: ') &&
          error.message.includes(WHY[name] ?? assert.fail(name)),
      );
    });
  }
  for (const [name, jwk] of [
    ['a private key', eddsa.privateJwk],
    ['a private RSA key', rs256.privateJwk],
    ['a secret', { kty: 'oct', k: 'c2VjcmV0' }],
    ['a secret in an RSA key', { ...rs256.publicJwk, k: 'c2VjcmV0' }],
  ] as const) {
    it(`a set given in place must not hold ${name}`, () =>
      keyRefused(() => owner([es256.publicJwk, untyped(jwk)]), 'private', /public keys only/, [
        eddsa.privateJwk.d,
        rs256.privateJwk.d,
      ]));
  }
});

describe('the options', () => {
  const trusted = { issuer: ISSUER, jwks: { keys: [es256.publicJwk] } };
  const REFUSED: [name: string, options: object, message: RegExp][] = [
    [
      'no audience, which would let another recipient encrypt the token again',
      { trustedIssuers: [trusted] },
      /"audience" or "resource"/,
    ],
    [
      'an audience for one issuer only',
      {
        trustedIssuers: [
          { ...trusted, audience: 'a' },
          { ...trusted, issuer: 'b' },
        ],
      },
      /"audience"/,
    ],
    ['requireExp: false', { trustedIssuers: [trusted], audience: 'a', requireExp: false }, /"requireExp"/],
    ['no issuer at all', { trustedIssuers: [], audience: 'a' }, /"trustedIssuers"/],
    ['one issuer twice', { trustedIssuers: [trusted, trusted], audience: 'a' }, /twice/],
    ['an issuer without keys', { trustedIssuers: [{ issuer: ISSUER }], audience: 'a' }, /"jwks"/],
    ['keys without an issuer', { trustedIssuers: [{ jwks: trusted.jwks }], audience: 'a' }, /"issuer"/],
    ['an empty issuer', { trustedIssuers: [{ ...trusted, issuer: '' }], audience: 'a' }, /"issuer"/],
    ['an unknown option', { trustedIssuers: [{ ...trusted, algorithm: 'ES256' }], audience: 'a' }, /"algorithm"/],
    [
      'an algorithm that is none',
      { trustedIssuers: [{ ...trusted, algorithms: ['none'] }], audience: 'a' },
      /"algorithms"/,
    ],
    ['HMAC', { trustedIssuers: [{ ...trusted, algorithms: ['ES256', 'HS256'] }], audience: 'a' }, /"algorithms"/],
    [
      'an empty list of algorithms',
      { trustedIssuers: [{ ...trusted, algorithms: [] }], audience: 'a' },
      /"algorithms"/,
    ],
    [
      'a string for a URL',
      { trustedIssuers: [{ ...trusted, jwks: 'https://issuer.example/jwks' }], audience: 'a' },
      /"jwks"/,
    ],
  ];
  for (const [name, options, message] of REFUSED)
    it(`refuse ${name}`, () =>
      keyRefused(() => new JWETokenVerifier(untyped({ keys, ...options })), 'option', message));
  it('refuse an empty set of keys', () =>
    keyRefused(() => trusting([{ issuer: ISSUER, jwks: { keys: [] } }]), 'malformed', /at least one key/));
  it('cannot be changed afterwards by who gave them', async () => {
    const algorithms: SignatureAlg[] = ['ES256'];
    const jwks: JwkSet = { keys: [{ ...es256.publicJwk }] };
    const given: TrustedIssuer = { issuer: ISSUER, jwks, algorithms };
    const owner = trusting([given]);
    Object.assign(jwks.keys[0] ?? {}, eddsa.publicJwk);
    algorithms[0] = 'EdDSA';
    given.issuer = 'https://other.example';
    assert.equal((await owner.verifyToken(nest(jws(es256)))).sub, 'ada');
    await refused(owner.verifyToken(nest(jws(eddsa))), 'signature');
  });
});

describe('typ, where an issuer’s option asks for one', () => {
  const asking = (typ: string): JWETokenVerifier =>
    trusting([{ issuer: ISSUER, jwks: { keys: [es256.publicJwk] }, typ }]);
  const said = (typ: unknown): string => nest(jws(es256, { typ }));
  const ACCEPTED: [asked: string, typs: string[]][] = [
    ['at+jwt', ['at+jwt', 'AT+JWT', 'At+Jwt', 'application/at+jwt', 'APPLICATION/AT+JWT', 'Application/at+JWT']],
    ['application/at+jwt', ['at+jwt', 'application/at+jwt', 'AT+jwt']],
    ['AT+JWT', ['at+jwt', 'application/at+jwt']],
    ['JWT', ['JWT', 'jwt', 'application/jwt']],
  ];
  for (const [asked, typs] of ACCEPTED) {
    it(`is ${asked} in any case, with application/ or without`, async () => {
      for (const typ of typs) assert.equal((await asking(asked).verifyToken(said(typ))).sub, 'ada', typ);
    });
  }
  const REFUSED: [name: string, typ: unknown][] = [
    ['none at all', undefined],
    ['JWT, as an ID token says', 'JWT'],
    ['a logout token', 'logout+jwt'],
    ['a security event', 'secevent+jwt'],
    ['a DPoP proof', 'dpop+jwt'],
    ['an empty one', ''],
    ['one with a space', 'at+jwt '],
    ['one with a parameter', 'at+jwt; charset=utf-8'],
    ['one that begins so', 'at+jwt2'],
    ['one that ends so', 'xat+jwt'],
    ['application/ twice', 'application/application/at+jwt'],
    ['another type', 'text/at+jwt'],
  ];
  for (const [name, typ] of REFUSED) {
    it(`refuses ${name}`, () => refused(asking('at+jwt').verifyToken(said(typ)), 'typ'));
  }
  it('refuses what is no text as a signature is refused', async () => {
    for (const typ of [null, 1, ['at+jwt'], { 0: 'at+jwt' }])
      await refused(asking('at+jwt').verifyToken(said(typ)), 'signature');
  });
  it('is looked at after the signature, and of the inner token alone', async () => {
    const attacker = signingPair('ES256', 'ES256');
    await refused(asking('at+jwt').verifyToken(nest(jws(attacker, { typ: 'JWT' }))), 'signature');
    await refused(asking('at+jwt').verifyToken(nest(jws(es256), { cty: 'JWT', typ: 'at+jwt' })), 'typ');
    const inner = jws(es256, { typ: 'at+jwt' });
    assert.equal((await asking('at+jwt').verifyToken(nest(inner, { cty: 'JWT', typ: 'JWT' }))).sub, 'ada');
  });
  it('is each issuer’s own', async () => {
    const OTHER = 'https://other.example';
    const owner = trusting([
      { issuer: ISSUER, jwks: { keys: [es256.publicJwk] }, typ: 'at+jwt' },
      { issuer: OTHER, jwks: { keys: [es256.publicJwk] } },
    ]);
    const by = (iss: string, typ: string | undefined): Promise<unknown> =>
      owner.verifyToken(nest(jws(es256, { typ }, { ...CLAIMS, iss })));
    await refused(by(ISSUER, undefined), 'typ');
    await by(ISSUER, 'at+jwt');
    for (const typ of [undefined, 'JWT', 'at+jwt']) await by(OTHER, typ);
  });
  it('refuses a token of encryptToken, which says JWT', async () => {
    const token = await encryptToken({ sub: 'ada' }, recipient, {
      sign: { key: es256.privateJwk, issuer: ISSUER, audience: AUDIENCE },
    });
    await refused(asking('at+jwt').verifyToken(token), 'typ');
    assert.equal((await asking('jwt').verifyToken(token)).sub, 'ada');
  });
});

describe('the header copies of a signed token', () => {
  it('must be true to the claims that the issuer signed', async () => {
    for (const copies of [{ iss: ISSUER }, { sub: 'ada' }, { aud: AUDIENCE }])
      assert.equal((await strict.verifyToken(nest(jws(es256), { cty: 'JWT', ...copies }))).sub, 'ada');
    for (const copies of [{ iss: 'x' }, { sub: 'eve' }, { aud: [AUDIENCE] }, { aud: 'x' }, { sub: null }])
      await refused(strict.verifyToken(nest(jws(es256), { cty: 'JWT', ...copies })), 'claims', JSON.stringify(copies));
  });
});

describe('encryptToken with sign', () => {
  const unsaidAlg = ({ alg: _alg, ...jwk }: PrivateSigningJwk): PrivateSigningJwk => jwk;
  const NAMES: [key: PrivateSigningJwk, alg: string][] = [
    [{ ...eddsa.privateJwk, alg: 'Ed25519' }, 'Ed25519'],
    [{ ...eddsa.privateJwk, alg: 'EdDSA' }, 'EdDSA'],
    [unsaidAlg(eddsa.privateJwk), 'EdDSA'],
    [rs256.privateJwk, 'RS256'],
    [unsaidAlg(rs256.privateJwk), 'RS256'],
    [ps256.privateJwk, 'PS256'],
    [es256.privateJwk, 'ES256'],
    [unsaidAlg(es256.privateJwk), 'ES256'],
  ];
  for (const [key, alg] of NAMES) {
    it(`says the algorithm as its key does: ${key.kty} ${key.alg ?? 'without alg'} says ${alg}`, async () => {
      const token = await encryptToken({}, recipient, { sign: { key, issuer: ISSUER, audience: AUDIENCE } });
      const { plaintext } = await joseDecrypt(token, await importJWK(keys.keys[0] ?? {}, 'RSA-OAEP-256'));
      const [head = ''] = Buffer.from(plaintext).toString().split('.');
      const header = JSON.parse(Buffer.from(head, 'base64url').toString());
      assert.deepEqual(header, { alg, kid: key.kid, typ: 'JWT' });
      const publicKey = await importJWK({ ...key, d: undefined, alg }, alg);
      await compactVerify(plaintext, publicKey);
    });
  }
  const mint = (key: unknown, claims: object = {}): Promise<string> =>
    encryptToken(claims, recipient, { sign: { key: untyped(key), issuer: ISSUER, audience: AUDIENCE } });
  for (const [name, options] of Object.entries<unknown>({
    'no member': {},
    'no key': { issuer: ISSUER, audience: AUDIENCE },
    'no issuer': { key: es256.privateJwk, audience: AUDIENCE },
    'a number as issuer': { key: es256.privateJwk, issuer: 1, audience: AUDIENCE },
    'no audience': { key: es256.privateJwk, issuer: ISSUER },
    'a number as audience': { key: es256.privateJwk, issuer: ISSUER, audience: 1 },
    'a number among audiences': { key: es256.privateJwk, issuer: ISSUER, audience: [AUDIENCE, 1] },
  })) {
    it(`are refused for ${name} as what signs`, () =>
      assert.rejects(
        encryptToken({}, recipient, { sign: untyped(options) }),
        (error) =>
          error instanceof KeyError &&
          error.code === 'unsupported' &&
          /^sign needs a key .* an issuer and an audience$/.test(error.message),
      ));
  }
  for (const [name, sign, message] of [
    ['nothing', null, /^sign must be an object$/],
    ['a string', 'key', /^sign must be an object$/],
    ['a list', [], /^sign must be an object$/],
    ['an unknown member', { key: es256.privateJwk, issuer: ISSUER, audience: AUDIENCE, alg: 'none' }, /"alg"/],
    ['a misspelt member', { key: es256.privateJwk, issuer: ISSUER, audiences: AUDIENCE }, /"audiences"/],
  ] as const) {
    it(`are refused for ${name} as what signs, as any unknown option`, () =>
      assert.rejects(
        encryptToken({}, recipient, { sign: untyped(sign) }),
        (error) => error instanceof KeyError && error.code === 'option' && message.test(error.message),
      ));
  }
  it('lets claims given win, iss and aud too', async () => {
    const token = await mint(es256.privateJwk, { iss: 'mine', aud: ['x'], exp: NOW + 50, iat: 7 });
    const owner = new JWETokenVerifier({
      keys,
      audience: 'x',
      trustedIssuers: [{ issuer: 'mine', jwks: { keys: [es256.publicJwk] } }],
    });
    assert.deepEqual(
      { ...(await owner.verifyToken(token)), aud: null },
      { iss: 'mine', aud: null, exp: NOW + 50, iat: 7 },
    );
  });
  it('signs with what the key says, by either name of Ed25519, or what fits its type', async () => {
    const { alg: _rsa, ...rsa } = rs256.privateJwk;
    const { alg: _okp, use: _use, ...okp } = eddsa.privateJwk;
    for (const key of [rsa, okp, { ...eddsa.privateJwk, alg: 'Ed25519' }, { ...es256.privateJwk, key_ops: ['sign'] }])
      assert.equal((await strict.verifyToken(await mint(key, { sub: 'ada' }))).sub, 'ada');
  });
  const { d: _private, ...publicOnly } = es256.privateJwk;
  const p384 = newPair('ec', { namedCurve: 'P-384' }).privateKey.export({ format: 'jwk' });
  const weak = newPair('rsa', { modulusLength: 1024 }).privateKey.export({ format: 'jwk' });
  const REFUSED: [name: string, key: unknown, code: string][] = [
    ['a public key', publicOnly, 'unsupported'],
    ['null', null, 'unsupported'],
    ['undefined', undefined, 'unsupported'],
    ['a string', 'key', 'unsupported'],
    ['a secret', { kty: 'oct', k: 'c2VjcmV0' }, 'unsupported'],
    ['an encryption key', { ...rs256.privateJwk, use: 'enc' }, 'unsupported'],
    ['alg RSA-OAEP-256', { ...rs256.privateJwk, alg: 'RSA-OAEP-256' }, 'unsupported'],
    ['alg none', { ...rs256.privateJwk, alg: 'none' }, 'unsupported'],
    ['key_ops without sign', { ...es256.privateJwk, key_ops: ['verify'] }, 'unsupported'],
    ['P-384', p384, 'unsupported'],
    ['1024 bits', { ...weak, alg: 'RS256' }, 'weak'],
    [
      'the public half of another key',
      { ...eddsa.privateJwk, x: signingPair('EdDSA', 'x').publicJwk.x },
      'inconsistent',
    ],
    [
      'the public point of another key',
      { ...es256.privateJwk, x: signingPair('ES256', 'x').publicJwk.x },
      'inconsistent',
    ],
    ['a d that is none', { ...eddsa.privateJwk, d: 'AA' }, 'inconsistent'],
    ['the private half of another RSA key', { ...rs256.privateJwk, n: ps256.publicJwk.n }, 'inconsistent'],
  ];
  for (const [name, key, code] of REFUSED) {
    it(`refuses ${name}`, () =>
      assert.rejects(mint(key), (error) => {
        assert.ok(error instanceof KeyError, String(error));
        assert.equal(error.code, code);
        for (const {
          privateJwk: { d },
        } of PAIRS)
          assert.ok(!error.message.includes(d));
        return true;
      }));
  }
});
