// The libraries that make tokens in the field: what each makes is read here, what the server refuses of it is refused
// for the reason that the matrix shows, and each that can read tokens reads those made here.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import nodeJose from 'node-jose';
import { encryptToken, getUser, type Jwk, JWETokenVerifier, withAuth } from 'mcp-auth-middleware';
import { type Job, type Producer, producers, pythonWith, type Sealing } from './support/producers.js';
import { keyPair, outcome, root, run, serve } from './support/support.js';
import { newPair, refused, untyped } from './support/tokens.js';

const ALGORITHMS = ['RSA-OAEP-256', 'RSA-OAEP'] as const;
const CLAIMS = {
  sub: 'ada',
  name: 'Ada Lovelace – Gräfin 👩‍💻',
  roles: ['admin'],
  nested: { a: [1, 2.5, null, true] },
  exp: 99999999999,
};
const ISSUER = 'https://issuer.example';
const AUDIENCE = 'https://server.example/mcp';
const SIGNED_CLAIMS = { ...CLAIMS, iss: ISSUER, aud: AUDIENCE };

// ## The matrix
// -------------

/** The columns, in the order in which they are printed, by the table they are in. */
const ACCEPTED = [...ALGORITHMS, 'no kid, user in `data`', 'signed and encrypted', 'reads tokens made here'];
/** What is refused, for which reason, and what a library must have to make it. */
const REFUSALS = [
  { column: 'its defaults', reason: 'malformed', needed: 'defaults' },
  { column: '`enc` A128CBC-HS256', reason: 'malformed' },
  { column: '`zip` DEF', reason: 'malformed', needed: 'zip' },
  { column: 'the number 2^53', reason: 'unsafe_integer' },
  { column: 'nested without `cty`', reason: 'signature', needed: 'untyped nesting' },
] as const;
const REFUSED = REFUSALS.map(({ column }) => column);
type Cells = Map<string, string>;
const matrix = new Map<Producer, Cells>(producers.map((producer) => [producer, new Map()]));

const row = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
function rowOf(producer: Producer, columns: readonly string[]): string {
  const cells = matrix.get(producer);
  const shown = columns.map((column) => (producer.version ? (cells?.get(column) ?? '–') : 'not run'));
  return row([producer.name, ...shown]);
}
const table = (columns: readonly string[]): string =>
  [row(['producer', ...columns]), row(Array(columns.length + 1).fill('---'))]
    .concat(producers.map((producer) => rowOf(producer, columns)))
    .join('\n');

/** Notes what was measured, whatever a test thinks of it: nothing in the matrix is only expected. Several add up. */
function note(producer: Producer, column: string, shown: string): void {
  const cells = matrix.get(producer);
  const notes = new Set(cells?.get(column)?.split(', ')).add(shown);
  cells?.set(column, [...notes].join(', '));
}

// ## The jobs
// -----------

const issuerKeys = [
  { alg: 'RS256', pair: newPair('rsa') },
  { alg: 'PS256', pair: newPair('rsa') },
  { alg: 'ES256', pair: newPair('ec') },
  { alg: 'EdDSA', pair: newPair('ed25519') },
].map(({ alg, pair }) => ({
  alg,
  privateJwk: { ...pair.privateKey.export({ format: 'jwk' }), kid: alg },
  publicJwk: { ...pair.publicKey.export({ format: 'jwk' }), kid: alg, alg },
}));

async function jobsFor(producer: Producer): Promise<Map<string, Job>> {
  const jobs = new Map<string, Job>();
  const { publicJwk } = await keyPair();
  const sealing = (jwk: Jwk, header: object = {}, rest: Partial<Sealing> = {}): Sealing => ({
    key: untyped({ kty: jwk.kty, n: jwk.n, e: jwk.e }),
    header: { alg: jwk.alg ?? '', enc: 'A256GCM', kid: jwk.kid, ...header },
    claims: CLAIMS,
    ...rest,
  });
  for (const alg of ALGORITHMS) {
    const pair = await keyPair('server', alg);
    jobs.set(`made ${alg}`, sealing(pair.publicJwk));
    const claims = { data: CLAIMS, iat: 1, exp: CLAIMS.exp };
    jobs.set(`nameless ${alg}`, sealing(pair.publicJwk, { kid: undefined }, { claims }));
    if (!producer.has.includes('opening')) continue;
    const { alg: _alg, use: _use, iat: _iat, ...bare } = pair.privateJwk;
    jobs.set(`opened ${alg}`, { key: untyped(bare), open: await encryptToken(CLAIMS, pair.publicJwk) });
  }
  for (const { alg, privateJwk } of issuerKeys.filter((key) => producer.signs.includes(key.alg))) {
    const sign = { key: untyped<Jwk>(privateJwk), header: { alg, kid: alg } };
    for (const encryption of ALGORITHMS) {
      const recipient = (await keyPair('server', encryption)).publicJwk;
      jobs.set(`signed ${alg} ${encryption}`, sealing(recipient, { cty: 'JWT' }, { claims: SIGNED_CLAIMS, sign }));
    }
    if (producer.has.includes('untyped nesting') && alg === 'RS256')
      jobs.set('nested without `cty`', sealing(publicJwk, {}, { claims: SIGNED_CLAIMS, sign }));
  }
  jobs.set('`enc` A128CBC-HS256', sealing(publicJwk, { enc: 'A128CBC-HS256' }));
  jobs.set('the number 2^53', sealing(publicJwk, {}, { claims: { ...CLAIMS, id: 2 ** 53 } }));
  if (producer.has.includes('zip')) jobs.set('`zip` DEF', sealing(publicJwk, { zip: 'DEF' }));
  if (producer.has.includes('defaults'))
    jobs.set('its defaults', sealing(publicJwk, {}, { key: untyped(publicJwk), careless: true }));
  return jobs;
}

/** A server that accepts what one of these keys of the issuer has signed. */
async function signedOnly(
  keys = issuerKeys,
  alg: (typeof ALGORITHMS)[number] = 'RSA-OAEP-256',
): Promise<JWETokenVerifier> {
  const { privateJwk } = await keyPair('server', alg);
  const jwks = { keys: keys.map((key) => untyped<Jwk>(key.publicJwk)) };
  return new JWETokenVerifier({ keys: privateJwk, trustedIssuers: [{ issuer: ISSUER, jwks }], audience: AUDIENCE });
}

const plain = (user: unknown): unknown => JSON.parse(JSON.stringify(user)); // claims have no prototype

// ## The tests
// ------------

type Result = (name: string) => string;

function holdsEncrypted(producer: Producer, result: Result, alg: (typeof ALGORITHMS)[number]): void {
  it(`makes tokens that are accepted: ${alg}`, async () => {
    const { privateJwk } = await keyPair('server', alg);
    const verification = new JWETokenVerifier({ keys: privateJwk }).verifyToken(result(`made ${alg}`));
    note(producer, alg, await outcome(verification));
    assert.deepEqual(plain(await verification), CLAIMS);
  });
  it(`makes the tokens of older servers, without kid and with the user in data: ${alg}`, async () => {
    const { privateJwk } = await keyPair('server', alg);
    const verifier = new JWETokenVerifier({ keys: privateJwk, claimsMember: 'data' });
    const verification = verifier.verifyToken(result(`nameless ${alg}`));
    note(producer, 'no kid, user in `data`', await outcome(verification));
    assert.deepEqual(plain(await verification), CLAIMS);
    const [header = ''] = result(`nameless ${alg}`).split('.');
    assert.equal(JSON.parse(Buffer.from(header, 'base64url').toString()).kid, undefined);
  });
  it(`makes tokens that a key for the other algorithm refuses: ${alg}`, async () => {
    const { privateJwk } = await keyPair('server', alg);
    const other = ALGORITHMS.find((name) => name !== alg) ?? alg;
    const verifier = new JWETokenVerifier({ keys: { ...privateJwk, alg: other } });
    await refused(verifier.verifyToken(result(`made ${alg}`)), 'malformed');
  });
  if (!producer.has.includes('opening')) return;
  it(`reads tokens made here: ${alg}`, () => {
    const { iat, ...claims } = JSON.parse(result(`opened ${alg}`));
    assert.deepEqual(claims, CLAIMS);
    assert.equal(typeof iat, 'number');
    note(producer, 'reads tokens made here', alg);
  });
}

function holdsSigned(producer: Producer, result: Result, issuerKey: (typeof issuerKeys)[number]): void {
  const { alg } = issuerKey;
  for (const encryption of ALGORITHMS) {
    it(`signs tokens that are accepted: ${alg} in ${encryption}`, async () => {
      const token = result(`signed ${alg} ${encryption}`);
      const authentication = (await signedOnly(issuerKeys, encryption)).authenticate(token);
      const ended = await outcome(authentication);
      note(producer, 'signed and encrypted', ended === 'accepted' ? alg : `${alg} in ${encryption} ${ended}`);
      const auth = await authentication;
      assert.deepEqual([plain(auth.user), auth.signed, auth.issuer], [SIGNED_CLAIMS, true, ISSUER]);
      const otherKeys = issuerKeys.filter((key) => key !== issuerKey);
      await refused((await signedOnly(otherKeys, encryption)).verifyToken(token), 'signature');
    });
  }
  it(`signs tokens that a server without issuers does not read unverified: ${alg}`, async () => {
    const { privateJwk } = await keyPair();
    const verifier = new JWETokenVerifier({ keys: privateJwk });
    await refused(verifier.verifyToken(result(`signed ${alg} RSA-OAEP-256`)), 'signature');
  });
}

function holdsRefusals(producer: Producer, result: Result): void {
  it('makes unsigned tokens that a server with issuers refuses', async () => {
    await refused((await signedOnly()).verifyToken(result('made RSA-OAEP-256')), 'signature');
  });
  for (const refusal of REFUSALS) {
    const { column, reason } = refusal;
    if ('needed' in refusal && !producer.has.includes(refusal.needed)) continue;
    it(`can make tokens that are refused: ${column}`, async () => {
      const { privateJwk } = await keyPair();
      const verifier = reason === 'signature' ? await signedOnly() : new JWETokenVerifier({ keys: privateJwk });
      const verification = verifier.verifyToken(result(column));
      note(producer, column, `\`${await outcome(verification)}\``);
      const message = 'The access token is invalid';
      await assert.rejects(verification, { name: 'AuthError', reason, status: 401, message });
    });
  }
}

function holds(producer: Producer): void {
  const results = new Map<string, string>();
  before(async () => {
    const jobs = await jobsFor(producer);
    const made = await producer.perform([...jobs.values()]);
    for (const [index, name] of [...jobs.keys()].entries()) results.set(name, made[index] ?? '');
  });
  const result = (name: string): string => results.get(name) ?? assert.fail(`no result ${name}`);
  for (const alg of ALGORITHMS) holdsEncrypted(producer, result, alg);
  for (const key of issuerKeys.filter(({ alg }) => producer.signs.includes(alg))) holdsSigned(producer, result, key);
  holdsRefusals(producer, result);
}

for (const producer of producers) {
  const { name, version, debian } = producer;
  if (version) describe(`${name} ${version}`, () => holds(producer));
  else {
    const missing = debian === undefined ? 'is in no package of Debian 12' : `is not installed (${debian})`;
    const skip = debian !== undefined && process.env.CI ? false : `${name} ${missing}`;
    it(`${name} makes tokens that are accepted`, { skip }, () => assert.fail(`${name} ${missing}`));
  }
}

it('node-jose takes a string for octets: a name beyond Latin-1 is no UTF-8 any more, and refused', async () => {
  const { publicJwk, privateJwk } = await keyPair();
  const key = await nodeJose.JWK.asKey(publicJwk);
  const seal = (text: string | Buffer): Promise<string> =>
    nodeJose.JWE.createEncrypt({ format: 'compact', contentAlg: 'A256GCM' }, key).update(text).final();
  const text = JSON.stringify(CLAIMS);
  const verifier = new JWETokenVerifier({ keys: privateJwk });
  await refused(verifier.verifyToken(await seal(text)), 'claims');
  assert.deepEqual(plain(await verifier.verifyToken(await seal(Buffer.from(text)))), CLAIMS);
});

const python = await pythonWith('jwcrypto');
describe('examples/producers/producer.py', () => {
  const file = join(root, 'examples/producers/producer.py');
  const interpreter = python?.interpreter ?? 'python3';
  const skip = python || process.env.CI ? false : 'no python3 has jwcrypto';
  const mcp = createMcpHandler(() => {
    const server = new McpServer({ name: 'hello', version: '1.0.0' });
    server.registerTool('whoami', { description: 'Says who is asking' }, () => ({
      content: [{ type: 'text', text: `Hello, ${String(getUser().name)}!` }],
    }));
    return server;
  });

  for (const alg of ALGORITHMS) {
    it(`calls a tool as its user, with the algorithm that the server's key names: ${alg}`, { skip }, async (t) => {
      const { privateJwk } = await keyPair('server', alg);
      const { url } = await serve(t, withAuth(toNodeHandler(mcp), { keys: privateJwk, requireExp: true }));
      const { code, stdout, stderr } = await run(interpreter, ['-W', 'ignore', file, `${url}/mcp`]);
      assert.deepEqual({ code, stderr }, { code: 0, stderr: '' });
      assert.match(stdout, /"text":"Hello, Ada!"/);
    });
  }
  it('follows no redirect to a key set, and says what it got', { skip }, async (t) => {
    const { privateJwk } = await keyPair();
    const { url } = await serve(t, withAuth(toNodeHandler(mcp), { keys: privateJwk }));
    const moved = await serve(t, (req, res) => void res.writeHead(302, { location: `${url}${req.url}` }).end());
    const { code, stdout, stderr } = await run(interpreter, ['-W', 'ignore', file, `${moved.url}/mcp`]);
    assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
    assert.match(stderr, /^error: GET \/\.well-known\/jwks\.json: HTTP 302/);
  });
});

describe('the matrix', () => {
  after(() => {
    const versions = producers.map(({ name, version }) => `${name}: ${version ?? 'not run'}`);
    console.log(['', table(ACCEPTED), '', table(REFUSED), '', ...versions, ''].join('\n'));
  });

  const text = readFileSync(join(root, 'examples/producers/README.md'), 'utf8');
  it('has every producer, and its columns as they are here', () => {
    for (const columns of [ACCEPTED, REFUSED]) {
      const [head = '', rule = ''] = table(columns).split('\n');
      const documented = text.split(`${head}\n${rule}\n`)[1]?.split('\n\n')[0]?.split('\n') ?? [];
      const names = documented.map((line) => line.split(' | ')[0]?.slice(2));
      assert.deepEqual(
        names,
        producers.map(({ name }) => name),
      );
    }
  });
  for (const producer of producers.filter(({ version }) => version !== undefined)) {
    it(`in examples/producers/README.md is what ran: ${producer.name}`, () => {
      for (const columns of [ACCEPTED, REFUSED]) {
        const measured = rowOf(producer, columns);
        assert.ok(text.includes(`\n${measured}\n`), `missing row: ${measured}`);
      }
    });
  }
});
