// Python on the other side: tokens made there are read here, and the other way round.
import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { encryptToken, JWETokenVerifier } from 'mcp-auth-middleware';
import { keyPair, run } from './support/support.js';
import { newPair, refused, untyped } from './support/tokens.js';

/** Each program reads a list of jobs from standard input and prints a list of results. */
const PROGRAMS = {
  joserfc: `
import json, sys
from joserfc import jwe, jws, jwk
algorithms = ["RSA-OAEP", "RSA-OAEP-256", "A256GCM", "RS256", "PS256", "ES256", "EdDSA", "Ed25519"]
def do(job):
    if "open" in job:
        return jwe.decrypt_compact(job["open"], jwk.import_key(job["key"]), algorithms=algorithms).plaintext.decode()
    text = json.dumps(job["claims"], ensure_ascii=False)
    if "sign" in job:
        text = jws.serialize_compact(job["sign"]["header"], text.encode(), jwk.import_key(job["sign"]["key"]), algorithms=algorithms)
    return jwe.encrypt_compact(job["header"], text.encode(), jwk.import_key(job["key"]), algorithms=algorithms)
print(json.dumps([do(job) for job in json.load(sys.stdin)]))
`,
  jwcrypto: `
import json, sys
from jwcrypto import jwe, jws, jwk
algorithms = ["RSA-OAEP", "RSA-OAEP-256", "A256GCM", "RS256", "PS256", "ES256", "EdDSA"]
def do(job):
    key = jwk.JWK(**job["key"])
    if "open" in job:
        token = jwe.JWE(algs=algorithms)
        token.deserialize(job["open"], key)
        return token.payload.decode()
    text = json.dumps(job["claims"], ensure_ascii=False)
    if "sign" in job:
        signed = jws.JWS(text.encode())
        signed.allowed_algs = algorithms
        signed.add_signature(jwk.JWK(**job["sign"]["key"]), None, json.dumps(job["sign"]["header"]), None)
        text = signed.serialize(compact=True)
    token = jwe.JWE(text.encode(), json.dumps(job["header"]), algs=algorithms)
    token.add_recipient(key)
    return token.serialize(compact=True)
print(json.dumps([do(job) for job in json.load(sys.stdin)]))
`,
};

type Library = keyof typeof PROGRAMS;
const LIBRARIES = Object.keys(PROGRAMS).filter((name): name is Library => Object.hasOwn(PROGRAMS, name));

/** Which Python has which library: $PYTHON, the one on PATH, Debian's. */
const found = new Map<Library, string>();
for (const python of [process.env.PYTHON, 'python3', '/usr/bin/python3']) {
  for (const library of LIBRARIES) {
    if (python === undefined || found.has(library)) continue;
    const { code } = await run(python, ['-c', `import ${library}`]).catch(() => ({ code: 1 }));
    if (code === 0) found.set(library, python);
  }
}

const CLAIMS = {
  sub: 'ada',
  name: 'Ada Lovelace – Gräfin 👩‍💻',
  roles: ['admin'],
  nested: { a: [1, 2.5, null, true] },
  exp: 99999999999,
};
const ISSUER = 'https://issuer.example';
const AUDIENCE = 'https://server.example/mcp';

it(
  'has a Python with joserfc or jwcrypto in CI',
  { skip: found.size > 0 || process.env.CI ? false : 'no python3 has joserfc or jwcrypto' },
  () => {
    assert.ok(found.size > 0, 'neither joserfc nor jwcrypto: install python3-jwcrypto');
  },
);

for (const [library, python] of found) {
  describe(`${library} of Python`, () => {
    const results = new Map<string, string>();
    const keys = [
      { alg: 'RS256', pair: newPair('rsa', { modulusLength: 2048 }) },
      { alg: 'PS256', pair: newPair('rsa', { modulusLength: 2048 }) },
      { alg: 'ES256', pair: newPair('ec', { namedCurve: 'P-256' }) },
      { alg: 'EdDSA', pair: newPair('ed25519') },
    ].map(({ alg, pair }) => ({
      alg,
      jwk: { ...pair.privateKey.export({ format: 'jwk' }), kid: alg },
      publicJwk: { ...pair.publicKey.export({ format: 'jwk' }), kid: alg, alg },
    }));

    before(async () => {
      const jobs: [name: string, job: object][] = [];
      for (const alg of ['RSA-OAEP-256', 'RSA-OAEP'] as const) {
        const { publicJwk, privateJwk } = await keyPair('server', alg);
        const { alg: _alg, use: _use, iat: _iat, ...bare } = privateJwk;
        jobs.push([
          `made ${alg}`,
          {
            key: { kty: 'RSA', n: publicJwk.n, e: publicJwk.e },
            header: { alg, enc: 'A256GCM', kid: publicJwk.kid },
            claims: CLAIMS,
          },
        ]);
        jobs.push([
          `nameless ${alg}`,
          {
            key: { kty: 'RSA', n: publicJwk.n, e: publicJwk.e },
            header: { alg, enc: 'A256GCM' },
            claims: { data: CLAIMS, iat: 1, exp: 99999999999 },
          },
        ]);
        jobs.push([`opened ${alg}`, { key: bare, open: await encryptToken(CLAIMS, publicJwk) }]);
      }
      const { publicJwk } = await keyPair();
      for (const { alg, jwk } of keys) {
        jobs.push([
          `signed ${alg}`,
          {
            key: { kty: 'RSA', n: publicJwk.n, e: publicJwk.e },
            header: { alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: publicJwk.kid, cty: 'JWT' },
            claims: { ...CLAIMS, iss: ISSUER, aud: AUDIENCE },
            sign: { key: jwk, header: { alg, kid: alg } },
          },
        ]);
      }
      const { code, stdout, stderr } = await run(python, ['-W', 'ignore', '-c', PROGRAMS[library]], {
        input: JSON.stringify(jobs.map(([, job]) => job)),
      });
      assert.equal(code, 0, stderr);
      const answers: string[] = JSON.parse(stdout);
      for (const [index, [name]] of jobs.entries()) results.set(name, answers[index] ?? '');
    });
    const result = (name: string): string => results.get(name) ?? assert.fail(`no result ${name}`);

    for (const alg of ['RSA-OAEP-256', 'RSA-OAEP'] as const) {
      it(`makes tokens that are accepted: ${alg}`, async () => {
        const { privateJwk } = await keyPair('server', alg);
        assert.equal(
          JSON.stringify(await new JWETokenVerifier({ keys: privateJwk }).verifyToken(result(`made ${alg}`))),
          JSON.stringify(CLAIMS),
        );
      });
      it(`makes the tokens of its older servers, without kid and with the user in data: ${alg}`, async () => {
        const { privateJwk } = await keyPair('server', alg);
        const user = await new JWETokenVerifier({ keys: privateJwk, claimsMember: 'data' }).verifyToken(
          result(`nameless ${alg}`),
        );
        assert.equal(JSON.stringify(user), JSON.stringify(CLAIMS));
      });
      it(`opens tokens made here: ${alg}`, () => {
        const { iat, ...claims } = JSON.parse(result(`opened ${alg}`));
        assert.deepEqual(claims, CLAIMS);
        assert.equal(typeof iat, 'number');
      });
    }
    it('makes tokens that are refused by a key for the other algorithm', async () => {
      const { privateJwk } = await keyPair();
      await refused(
        new JWETokenVerifier({ keys: { ...privateJwk, alg: 'RSA-OAEP' } }).verifyToken(result('made RSA-OAEP-256')),
        'malformed',
      );
    });
    for (const { alg, publicJwk } of keys) {
      it(`signs tokens that are accepted: ${alg}`, async () => {
        const { privateJwk } = await keyPair();
        const trusted = { issuer: ISSUER, jwks: { keys: keys.map((key) => untyped(key.publicJwk)) } };
        const auth = await new JWETokenVerifier({
          keys: privateJwk,
          trustedIssuers: [trusted],
          audience: AUDIENCE,
        }).authenticate(result(`signed ${alg}`));
        assert.deepEqual([auth.user.sub, auth.signed, auth.issuer], ['ada', true, ISSUER]);
        const others = keys.filter((key) => key.publicJwk !== publicJwk).map((key) => untyped(key.publicJwk));
        await refused(
          new JWETokenVerifier({
            keys: privateJwk,
            trustedIssuers: [{ ...trusted, jwks: { keys: others } }],
            audience: AUDIENCE,
          }).verifyToken(result(`signed ${alg}`)),
          'signature',
        );
      });
    }
  });
}
