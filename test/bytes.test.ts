// Strict base64url, UTF-8 and JSON, seen from outside: what is not canonical never becomes a user.
import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { compactDecrypt, JWETokenVerifier, type RsaPrivateJwk, type RsaPublicJwk } from 'mcp-auth-middleware';
import { keyPair } from './support/support.js';
import { base64url, edit, refused, seal, SEGMENTS } from './support/tokens.js';

let publicJwk: RsaPublicJwk;
let privateJwk: RsaPrivateJwk;
let verifier: JWETokenVerifier;
before(async () => {
  ({ publicJwk, privateJwk } = await keyPair());
  verifier = new JWETokenVerifier({ keys: { keys: [privateJwk] } });
});

/**
 * The token with one segment spelled differently and everything else as its sender would make it: the tag is right for
 * the header as spelled, so only the decoder's strictness stands between such a token and the user.
 */
function spell(segment: (typeof SEGMENTS)[number], change: (text: string) => string): string {
  const header = base64url({ alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: publicJwk.kid, typ: 'a' });
  const aad = segment === 'protected header' ? change(header) : header;
  const token = seal(publicJwk, { header: { typ: 'a' }, aad });
  assert.equal(token.split('.')[0], header);
  return edit(token, segment, change);
}

const insert = (text: string, addition: string): string => `${text.slice(0, 4)}${addition}${text.slice(4)}`;
const shiftFirst = (text: string, offset: number): string =>
  String.fromCharCode(text.charCodeAt(0) + offset) + text.slice(1);

const SPELLINGS: [name: string, change: (text: string) => string][] = [
  ['one = of padding', (text) => `${text}=`],
  ['two = of padding', (text) => `${text}==`],
  ['padding inside', (text) => insert(text, '=')],
  ['a space before', (text) => ` ${text}`],
  ['a space after', (text) => `${text} `],
  ['a space inside', (text) => insert(text, ' ')],
  ['a tab inside', (text) => insert(text, '\t')],
  ['a line feed inside', (text) => insert(text, '\n')],
  ['a carriage return and line feed after', (text) => `${text}\r\n`],
  ['a NUL after', (text) => `${text}\0`],
  ['a byte order mark before', (text) => `\uFEFF${text}`],
  ['a no-break space inside', (text) => insert(text, '\u00A0')],
  ['a zero-width space after', (text) => `${text}\u200B`],
  ['an exclamation mark inside', (text) => insert(text, '!')],
  ['a first character that is the right one in its low octet', (text) => shiftFirst(text, 0x100)],
  ['a full-width first character', (text) => shiftFirst(text, 0xfee0)],
  ['a percent-encoded first character', (text) => `%${text.charCodeAt(0).toString(16)}${text.slice(1)}`],
];

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

describe('base64url', () => {
  it('is accepted where it is canonical', async () => {
    for (const segment of SEGMENTS)
      assert.equal((await verifier.verifyToken(spell(segment, (text) => text))).sub, 'ada');
  });

  for (const segment of SEGMENTS) {
    it(`rejects another spelling of the same octets in the ${segment}`, async () => {
      for (const [name, change] of SPELLINGS)
        await refused(verifier.verifyToken(spell(segment, change)), 'malformed', name);
    });
  }

  for (const [name, standard, url] of [
    ['plus', '+', '-'],
    ['slash', '/', '_'],
  ] as const) {
    it(`rejects the ${name} of standard base64`, async () => {
      for (const segment of ['encrypted key', 'iv', 'ciphertext', 'tag'] as const) {
        let token = '';
        for (let tries = 0; tries < 1000 && !token.includes(standard); tries++)
          token = spell(segment, (text) => text.replace(url, standard));
        assert.ok(token.includes(standard), `${segment}: chance gave no ${url} in 1000 tokens`);
        await refused(verifier.verifyToken(token), 'malformed', segment);
      }
      const header = base64url({ alg: 'RSA-OAEP-256', enc: 'A256GCM', typ: url === '-' ? '~~~>>>>' : '~~~????' });
      assert.ok(header.includes(url));
      const spelled = header.replace(url, standard);
      const token = seal(publicJwk, { header: Buffer.from(header, 'base64url'), aad: spelled });
      await refused(
        verifier.verifyToken(edit(token, 'protected header', () => spelled)),
        'malformed',
        'protected header',
      );
    });
  }

  it('rejects bits that no octet uses', async () => {
    let tried = 0;
    for (const segment of SEGMENTS) {
      const unused = [0, undefined, 4, 2][
        (seal(publicJwk, { header: { typ: 'a' } }).split('.')[SEGMENTS.indexOf(segment)] ?? '').length % 4
      ];
      for (let stray = 1; stray < 2 ** (unused ?? 0); stray++) {
        const change = (text: string): string =>
          text.slice(0, -1) + ALPHABET.charAt(ALPHABET.indexOf(text.slice(-1)) + stray);
        await refused(verifier.verifyToken(spell(segment, change)), 'malformed', `${segment}, ${stray}`);
        tried++;
      }
    }
    assert.ok(tried >= 3 * 15, `only ${tried}: encrypted key, ciphertext and tag end in four such bits`);
  });

  it('rejects a lone last character, which decodes to nothing', async () => {
    await refused(verifier.verifyToken(spell('iv', (text) => `${text}A`)), 'malformed');
  });
});

const header = (text: string): string =>
  text.replace('{', `{"alg":"RSA-OAEP-256","enc":"A256GCM","kid":${JSON.stringify(publicJwk.kid)},`);

describe('UTF-8', () => {
  const SOUND: [name: string, octets: Buffer][] = [
    ['two, three and four octets', Buffer.from('é€😀')],
    ['U+10FFFF', Buffer.from('\u{10FFFF}')],
    ['a byte order mark inside a string', Buffer.from('\uFEFF')],
    ['a noncharacter', Buffer.from('\uFFFF')],
  ];
  const DEFECTIVE: [name: string, octets: Buffer][] = [
    ['a lone continuation octet', Buffer.of(0x80)],
    ['a truncated character', Buffer.of(0xe2, 0x82)],
    ['an overlong slash', Buffer.of(0xc0, 0xaf)],
    ['an overlong NUL', Buffer.of(0xc0, 0x80)],
    ['an overlong three-octet form', Buffer.of(0xe0, 0x80, 0xaf)],
    ['a surrogate', Buffer.of(0xed, 0xa0, 0x80)],
    ['a pair of surrogates (CESU-8)', Buffer.of(0xed, 0xa0, 0xbd, 0xed, 0xb8, 0x80)],
    ['more than U+10FFFF', Buffer.of(0xf4, 0x90, 0x80, 0x80)],
    ['an octet that never occurs', Buffer.of(0xff)],
    ['Latin-1', Buffer.from('é', 'latin1')],
  ];
  const around = (open: string, octets: Buffer): Buffer =>
    Buffer.concat([Buffer.from(`${open}"`), octets, Buffer.from('"}')]);

  for (const [name, octets] of SOUND) {
    it(`accepts ${name}`, async () => {
      const expected = octets.toString();
      assert.equal(
        (await verifier.verifyToken(seal(publicJwk, { plaintext: around('{"name":', octets) })))['name'],
        expected,
      );
      const { protectedHeader } = await compactDecrypt(
        seal(publicJwk, { header: around(header('{"typ":'), octets) }),
        privateJwk,
      );
      assert.equal(protectedHeader.typ, expected);
    });
  }
  for (const [name, octets] of DEFECTIVE) {
    it(`rejects ${name} in claims and header`, async () => {
      await refused(verifier.verifyToken(seal(publicJwk, { plaintext: around('{"name":', octets) })), 'claims');
      await refused(verifier.verifyToken(seal(publicJwk, { header: around(header('{"typ":'), octets) })), 'malformed');
    });
  }
  for (const [name, encode] of [
    ['a byte order mark in front', (text: string) => Buffer.from(`\uFEFF${text}`)],
    ['UTF-16', (text: string) => Buffer.from(text, 'utf16le')],
    ['UTF-16 with a byte order mark', (text: string) => Buffer.from(`\uFEFF${text}`, 'utf16le')],
  ] as const) {
    it(`rejects ${name} in claims and header`, async () => {
      await refused(verifier.verifyToken(seal(publicJwk, { plaintext: encode('{"sub":"ada"}') })), 'claims');
      await refused(verifier.verifyToken(seal(publicJwk, { header: encode(header('{"typ":"a"}')) })), 'malformed');
    });
  }
});

describe('JSON', () => {
  const NOT_AN_OBJECT = ['', ' ', 'null', 'true', '1', '"text"', '[]', '[{"sub":"ada"}]', 'NaN', 'undefined'];
  const NOT_JSON = [
    '{',
    '}',
    '{"a":1',
    '{"a":1}}',
    '{"a":1}{"a":1}',
    '{"a":1}x',
    '{"a":1},',
    '{"a":1,}',
    '{"a"}',
    '{a:1}',
    "{'a':1}",
    '{"a":01}',
    '{"a":+1}',
    '{"a":.5}',
    '{"a":1.}',
    '{"a":0x10}',
    '{"a":NaN}',
    '{"a":Infinity}',
    '{"a":-Infinity}',
    '{"a":undefined}',
    '{"a":1/**/}',
    '{"a":1}//',
    '{"a":"\t"}',
    '{"a":"\0"}',
    '{"a":"\\x41"}',
    '{"a":"\\u12"}',
    '{"a":True}',
    '{"a":[1,]}',
    '{"a":[1 2]}',
    '{\u00A0"a":1}',
    '{"a":1}\0',
  ];
  const SPACED = [' {"typ":"a"}', '{"typ":"a"} ', '\t\r\n{ "typ" : "a" }\n'];

  for (const text of [...NOT_AN_OBJECT, ...NOT_JSON]) {
    it(`rejects ${JSON.stringify(text)} as claims and as header`, async () => {
      await refused(verifier.verifyToken(seal(publicJwk, { plaintext: text })), 'claims');
      const inHeader = text.startsWith('{') && text.includes('"a"') ? header(text) : text;
      await refused(verifier.verifyToken(seal(publicJwk, { header: inHeader })), 'malformed');
    });
  }
  for (const text of SPACED) {
    it(`accepts white space around JSON: ${JSON.stringify(text)}`, async () => {
      assert.equal((await verifier.verifyToken(seal(publicJwk, { plaintext: text })))['typ'], 'a');
      assert.equal(
        (await compactDecrypt(seal(publicJwk, { header: header(text) }), privateJwk)).protectedHeader.typ,
        'a',
      );
    });
  }

  // RFC 7516 §4 and RFC 7519 §4 leave two ways: refuse, or take the last.
  // What must not be is that two readers see two tokens.
  it('takes the last of two members with one name, in header and claims', async () => {
    const kid = JSON.stringify(publicJwk.kid);
    const twice = `{"alg":"none","kid":"other","alg":"RSA-OAEP-256","enc":"A128GCM","enc":"A256GCM","kid":${kid}}`;
    const user = await verifier.verifyToken(
      seal(publicJwk, { header: twice, plaintext: '{"sub":"eve","sub":"ada","exp":1,"exp":99999999999}' }),
    );
    assert.deepEqual({ ...user }, { sub: 'ada', exp: 99999999999 });
    for (const reversed of [
      `{"alg":"RSA-OAEP-256","alg":"none","enc":"A256GCM"}`,
      `{"alg":"RSA-OAEP-256","enc":"A256GCM","enc":"A128GCM"}`,
    ])
      await refused(verifier.verifyToken(seal(publicJwk, { header: reversed })), 'malformed', reversed);
    await refused(
      verifier.verifyToken(
        seal(publicJwk, {
          header: `{"alg":"RSA-OAEP-256","enc":"A256GCM","kid":${JSON.stringify(publicJwk.kid)},"kid":"other"}`,
        }),
      ),
      'unknown_key',
    );
    await refused(verifier.verifyToken(seal(publicJwk, { plaintext: '{"exp":99999999999,"exp":1}' })), 'expired');
  });
});
