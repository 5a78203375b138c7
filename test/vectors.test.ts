// What others published: the RFCs' own examples and Wycheproof's vectors, good and bad.
import assert from 'node:assert/strict';
import { createPrivateKey } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { compactDecrypt, JWETokenVerifier, type RsaPrivateJwk } from 'mcp-auth-middleware';
import { root } from './support/support.js';
import { edit, flip, editBytes, keyRefused, refused, seal, untyped } from './support/tokens.js';

interface Example {
  name: string;
  key: RsaPrivateJwk & { alg: 'RSA-OAEP' };
  jwe: string;
  plaintext: string;
}
const EXAMPLES: Example[] = [
  {
    name: 'RFC 7516 A.1',
    key: {
      kty: 'RSA',
      alg: 'RSA-OAEP',
      n:
        'oahUIoWw0K0usKNuOR6H4wkf4oBUXHTxRvgb48E-BVvxkeDNjbC4he8rUWcJoZmds2h7M70imEVhRU5djINXtqllXI4DFqcI1Dgj' +
        'T9LewND8MW2Krf3Spsk_ZkoFnilakGygTwpZ3uesH-PFABNIUYpOiN15dsQRkgr0vEhxN92i2asbOenSZeyaxziK72UwxrrKoExv' +
        '6kc5twXTq4h-QChLOln0_mtUZwfsRaMStPs6mS6XrgxnxbWhojf663tuEQueGC-FCMfra36C9knDFGzKsNa7LZK2djYgyD3JR_MB' +
        '_4NUJW_TqOQtwHYbxevoJArm-L5StowjzGy-_bq6Gw',
      e: 'AQAB',
      d:
        'kLdtIj6GbDks_ApCSTYQtelcNttlKiOyPzMrXHeI-yk1F7-kpDxY4-WY5NWV5KntaEeXS1j82E375xxhWMHXyvjYecPT9fpwR_M9' +
        'gV8n9Hrh2anTpTD93Dt62ypW3yDsJzBnTnrYu1iwWRgBKrEYY46qAZIrA2xAwnm2X7uGR1hghkqDp0Vqj3kbSCz1XyfCs6_LehBw' +
        'txHIyh8Ripy40p24moOAbgxVw3rxT_vlt3UVe4WO3JkJOzlpUf-KTVI2Ptgm-dARxTEtE-id-4OJr0h-K-VFs3VSndVTIznSxfyr' +
        'j8ILL6MG_Uv8YAu7VILSB3lOW085-4qE3DzgrTjgyQ',
      p:
        '1r52Xk46c-LsfB5P442p7atdPUrxQSy4mti_tZI3Mgf2EuFVbUoDBvaRQ-SWxkbkmoEzL7JXroSBjSrK3YIQgYdMgyAEPTPjXv_h' +
        'I2_1eTSPVZfzL0lffNn03IXqWF5MDFuoUYE0hzb2vhrlN_rKrbfDIwUbTrjjgieRbwC6Cl0',
      q:
        'wLb35x7hmQWZsWJmB_vle87ihgZ19S8lBEROLIsZG4ayZVe9Hi9gDVCOBmUDdaDYVTSNx_8Fyw1YYa9XGrGnDew00J28cRUoeBB_' +
        'jKI1oma0Orv1T9aXIWxKwd4gvxFImOWr3QRL9KEBRzk2RatUBnmDZJTIAfwTs0g68UZHvtc',
      dp:
        'ZK-YwE7diUh0qR1tR7w8WHtolDx3MZ_OTowiFvgfeQ3SiresXjm9gZ5KLhMXvo-uz-KUJWDxS5pFQ_M0evdo1dKiRTjVw_x4Nyqy' +
        'XPM5nULPkcpU827rnpZzAJKpdhWAgqrXGKAECQH0Xt4taznjnd_zVpAmZZq60WPMBMfKcuE',
      dq:
        'Dq0gfgJ1DdFGXiLvQEZnuKEN0UUmsJBxkjydc3j4ZYdBiMRAy86x0vHCjywcMlYYg4yoC4YZa9hNVcsjqA3FeiL19rk8g6Qn29Tt' +
        '0cj8qqyFpz9vNDBUfCAiJVeESOjJDZPYHdHY8v1b-o-Z2X5tvLx-TCekf7oxyeKDUqKWjis',
      qi:
        'VIMpMYbPf47dT1w_zDUXfPimsSegnMOA1zTaX7aGk_8urY6R8-ZW1FxU7AlWAyLWybqq6t16VFd7hQd0y6flUK4SlOydB61gwanO' +
        'sXGOAOv82cHq0E3eL4HrtZkUuKvnPrMnsUUFlfUdybVzxyjz9JF_XyaY14ardLSjf4L_FNY',
    },
    jwe:
      'eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.' +
      'OKOawDo13gRp2ojaHV7LFpZcgV7T6DVZKTyKOMTYUmKoTCVJRgckCL9kiMT03JGeipsEdY3mx_etLbbWSrFr05kLzcSr4qKAq7YN' +
      '7e9jwQRb23nfa6c9d-StnImGyFDbSv04uVuxIp5Zms1gNxKKK2Da14B8S4rzVRltdYwam_lDp5XnZAYpQdb76FdIKLaVmqgfwX7X' +
      'WRxv2322i-vDxRfqNzo_tETKzpVLzfiwQyeyPGLBIO56YJ7eObdv0je81860ppamavo35UgoRdbYaBcoh9QcfylQr66oc6vFWXRc' +
      'Z_ZT2LawVCWTIy3brGPi6UklfCpIMfIjf7iGdXKHzg.' +
      '48V1_ALb6US04U3b.' +
      '5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A.' +
      'XFBoMYUZodetZdvTiFvSkQ',
    plaintext: 'The true sign of intelligence is not knowledge but imagination.',
  },
  {
    name: 'RFC 7520 §5.2',
    key: {
      kty: 'RSA',
      kid: 'samwise.gamgee@hobbiton.example',
      use: 'enc',
      alg: 'RSA-OAEP',
      n:
        'wbdxI55VaanZXPY29Lg5hdmv2XhvqAhoxUkanfzf2-5zVUxa6prHRrI4pP1AhoqJRlZfYtWWd5mmHRG2pAHIlh0ySJ9wi0BioZBl' +
        '1XP2e-C-FyXJGcTy0HdKQWlrfhTm42EW7Vv04r4gfao6uxjLGwfpGrZLarohiWCPnkNrg71S2CuNZSQBIPGjXfkmIy2tl_VWgGnL' +
        '22GplyXj5YlBLdxXp3XeStsqo571utNfoUTU8E4qdzJ3U1DItoVkPGsMwlmmnJiwA7sXRItBCivR4M5qnZtdw-7v4WuR4779ubDu' +
        'J5nalMv2S66-RPcnFAzWSKxtBDnFJJDGIUe7Tzizjg1nms0Xq_yPub_UOlWn0ec85FCft1hACpWG8schrOBeNqHBODFskYpUc2LC' +
        '5JA2TaPF2dA67dg1TTsC_FupfQ2kNGcE1LgprxKHcVWYQb86B-HozjHZcqtauBzFNV5tbTuB-TpkcvJfNcFLlH3b8mb-H_ox35Fj' +
        'qBSAjLKyoeqfKTpVjvXhd09knwgJf6VKq6UC418_TOljMVfFTWXUxlnfhOOnzW6HSSzD1c9WrCuVzsUMv54szidQ9wf1cYWf3g5q' +
        'FDxDQKis99gcDaiCAwM3yEBIzuNeeCa5dartHDb1xEB_HcHSeYbghbMjGfasvKn0aZRsnTyC0xhWBlsolZE',
      e: 'AQAB',
      d:
        'n7fzJc3_WG59VEOBTkayzuSMM780OJQuZjN_KbH8lOZG25ZoA7T4Bxcc0xQn5oZE5uSCIwg91oCt0JvxPcpmqzaJZg1nirjcWZ-o' +
        'BtVk7gCAWq-B3qhfF3izlbkosrzjHajIcY33HBhsy4_WerrXg4MDNE4HYojy68TcxT2LYQRxUOCf5TtJXvM8olexlSGtVnQnDRut' +
        'xEUCwiewfmmrfveEogLx9EA-KMgAjTiISXxqIXQhWUQX1G7v_mV_Hr2YuImYcNcHkRvp9E7ook0876DhkO8v4UOZLwA1OlUX98mk' +
        'oqwc58A_Y2lBYbVx1_s5lpPsEqbbH-nqIjh1fL0gdNfihLxnclWtW7pCztLnImZAyeCWAG7ZIfv-Rn9fLIv9jZ6r7r-MSH9sqbuz' +
        'iHN2grGjD_jfRluMHa0l84fFKl6bcqN1JWxPVhzNZo01yDF-1LiQnqUYSepPf6X3a2SOdkqBRiquE6EvLuSYIDpJq3jDIsgoL8Mo' +
        '1LoomgiJxUwL_GWEOGu28gplyzm-9Q0U0nyhEf1uhSR8aJAQWAiFImWH5W_IQT9I7-yrindr_2fWQ_i1UgMsGzA7aOGzZfPljRy6' +
        'z-tY_KuBG00-28S_aWvjyUc-Alp8AUyKjBZ-7CWH32fGWK48j1t-zomrwjL_mnhsPbGs0c9WsWgRzI-K8gE',
      p:
        '7_2v3OQZzlPFcHyYfLABQ3XP85Es4hCdwCkbDeltaUXgVy9l9etKghvM4hRkOvbb01kYVuLFmxIkCDtpi-zLCYAdXKrAK3PtSbtz' +
        'ld_XZ9nlsYa_QZWpXB_IrtFjVfdKUdMz94pHUhFGFj7nr6NNxfpiHSHWFE1zD_AC3mY46J961Y2LRnreVwAGNw53p07Db8yD_92p' +
        'Da97vqcZOdgtybH9q6uma-RFNhO1AoiJhYZj69hjmMRXx-x56HO9cnXNbmzNSCFCKnQmn4GQLmRj9sfbZRqL94bbtE4_e0Zrpo8R' +
        'No8vxRLqQNwIy85fc6BRgBJomt8QdQvIgPgWCv5HoQ',
      q:
        'zqOHk1P6WN_rHuM7ZF1cXH0x6RuOHq67WuHiSknqQeefGBA9PWs6ZyKQCO-O6mKXtcgE8_Q_hA2kMRcKOcvHil1hqMCNSXlflM7W' +
        'PRPZu2qCDcqssd_uMbP-DqYthH_EzwL9KnYoH7JQFxxmcv5An8oXUtTwk4knKjkIYGRuUwfQTus0w1NfjFAyxOOiAQ37ussIcE6C' +
        '6ZSsM3n41UlbJ7TCqewzVJaPJN5cxjySPZPD3Vp01a9YgAD6a3IIaKJdIxJS1ImnfPevSJQBE79-EXe2kSwVgOzvt-gsmM29QQ8v' +
        'eHy4uAqca5dZzMs7hkkHtw1z0jHV90epQJJlXXnH8Q',
      dp:
        '19oDkBh1AXelMIxQFm2zZTqUhAzCIr4xNIGEPNoDt1jK83_FJA-xnx5kA7-1erdHdms_Ef67HsONNv5A60JaR7w8LHnDiBGnjdaU' +
        'mmuO8XAxQJ_ia5mxjxNjS6E2yD44USo2JmHvzeeNczq25elqbTPLhUpGo1IZuG72FZQ5gTjXoTXC2-xtCDEUZfaUNh4IeAipfLug' +
        'bpe0JAFlFfrTDAMUFpC3iXjxqzbEanflwPvj6V9iDSgjj8SozSM0dLtxvu0LIeIQAeEgT_yXcrKGmpKdSO08kLBx8VUjkbv_3Pn2' +
        '0Gyu2YEuwpFlM_H1NikuxJNKFGmnAq9LcnwwT0jvoQ',
      dq:
        'S6p59KrlmzGzaQYQM3o0XfHCGvfqHLYjCO557HYQf72O9kLMCfd_1VBEqeD-1jjwELKDjck8kOBl5UvohK1oDfSP1DleAy-cnmL2' +
        '9DqWmhgwM1ip0CCNmkmsmDSlqkUXDi6sAaZuntyukyflI-qSQ3C_BafPyFaKrt1fgdyEwYa08pESKwwWisy7KnmoUvaJ3SaHmohF' +
        'S78TJ25cfc10wZ9hQNOrIChZlkiOdFCtxDqdmCqNacnhgE3bZQjGp3n83ODSz9zwJcSUvODlXBPc2AycH6Ci5yjbxt4Ppox_5pjm' +
        '6xnQkiPgj01GpsUssMmBN7iHVsrE7N2iznBNCeOUIQ',
      qi:
        'FZhClBMywVVjnuUud-05qd5CYU0dK79akAgy9oX6RX6I3IIIPckCciRrokxglZn-omAY5CnCe4KdrnjFOT5YUZE7G_Pg44XgCXaa' +
        'rLQf4hl80oPEf6-jJ5Iy6wPRx7G2e8qLxnh9cOdf-kRqgOS3F48Ucvw3ma5V6KGMwQqWFeV31XtZ8l5cVI-I3NzBS7qltpUVgz2J' +
        'u021eyc7IlqgzR98qKONl27DuEES0aK0WE97jnsyO27Yp88Wa2RiBrEocM89QZI1seJiGDizHRUP4UZxw9zsXww46wy0P6f9grnY' +
        'p7t8LkyDDk8eoI4KX6SNMNVcyVS9IWjlq8EzqZEKIA',
    },
    jwe:
      'eyJhbGciOiJSU0EtT0FFUCIsImtpZCI6InNhbXdpc2UuZ2FtZ2VlQGhvYmJpdG9uLmV4YW1wbGUiLCJlbmMiOiJBMjU2R0NNIn0.' +
      'rT99rwrBTbTI7IJM8fU3Eli7226HEB7IchCxNuh7lCiud48LxeolRdtFF4nzQibeYOl5S_PJsAXZwSXtDePz9hk-BbtsTBqC2UsP' +
      'OdwjC9NhNupNNu9uHIVftDyucvI6hvALeZ6OGnhNV4v1zx2k7O1D89mAzfw-_kT3tkuorpDU-CpBENfIHX1Q58-Aad3FzMuo3Fn9' +
      'buEP2yXakLXYa15BUXQsupM4A1GD4_H4Bd7V3u9h8Gkg8BpxKdUV9ScfJQTcYm6eJEBz3aSwIaK4T3-dwWpuBOhROQXBosJzS1as' +
      'nuHtVMt2pKIIfux5BC6huIvmY7kzV7W7aIUrpYm_3H4zYvyMeq5pGqFmW2k8zpO878TRlZx7pZfPYDSXZyS0CfKKkMozT_qiCwZT' +
      'Sz4duYnt8hS4Z9sGthXn9uDqd6wycMagnQfOTs_lycTWmY-aqWVDKhjYNRf03NiwRtb5BE-tOdFwCASQj3uuAgPGrO2AWBe38UjQ' +
      'b0lvXn1SpyvYZ3WFc7WOJYaTa7A8DRn6MC6T-xDmMuxC0G7S2rscw5lQQU06MvZTlFOt0UvfuKBa03cxA_nIBIhLMjY2kOTxQMmp' +
      'DPTr6Cbo8aKaOnx6ASE5Jx9paBpnNmOOKH35j_QlrQhDWUN6A2Gg8iFayJ69xDEdHAVCGRzN3woEI2ozDRs.' +
      '-nBoKLH0YkLZPSI9.' +
      'o4k2cnGN8rSSw3IDo1YuySkqeS_t2m1GXklSgqBdpACm6UJuJowOHC5ytjqYgRL-I-soPlwqMUf4UgRWWeaOGNw6vGW-xyM01lTY' +
      'xrXfVzIIaRdhYtEMRBvBWbEwP7ua1DRfvaOjgZv6Ifa3brcAM64d8p5lhhNcizPersuhw5f-pGYzseva-TUaL8iWnctc-sSwy7SQ' +
      'mRkfhDjwbz0fz6kFovEgj64X1I5s7E6GLp5fnbYGLa1QUiML7Cc2GxgvI7zqWo0YIEc7aCflLG1-8BboVWFdZKLK9vNoycrYHumw' +
      'zKluLWEbSVmaPpOslY2n525DxDfWaVFUfKQxMF56vn4B9QMpWAbnypNimbM8zVOw.' +
      'UCGiqJxhBI3IFVdPalHHvA',
    plaintext:
      'You can trust us to stick with you through thick and thin\u2013to the bitter end. ' +
      'And you can trust us to keep any secret of yours\u2013closer than you keep it yourself. ' +
      'But you cannot trust us to let you face trouble alone, and go off without a word. We are your friends, Frodo.',
  },
];

describe('the examples of the RFCs', () => {
  for (const { name, key, jwe, plaintext } of EXAMPLES) {
    it(`${name} decrypts with a key that says RSA-OAEP, alone and in a set`, async () => {
      for (const keys of [key, { keys: [key] }]) {
        const opened = await compactDecrypt(jwe, keys);
        assert.equal(Buffer.from(opened.plaintext).toString(), plaintext);
        assert.equal(opened.protectedHeader.alg, 'RSA-OAEP');
      }
      await refused(new JWETokenVerifier({ keys: key }).verifyToken(jwe), 'claims', 'authentic, but no claims');
    });
    const refusal = 'is refused by the same key without alg, which then is for RSA-OAEP-256, and with any change';
    it(`${name} ${refusal}`, async () => {
      const { alg: _alg, ...silent } = key;
      await refused(compactDecrypt(jwe, silent), 'malformed');
      for (const segment of ['encrypted key', 'iv', 'ciphertext', 'tag'] as const)
        await refused(compactDecrypt(editBytes(jwe, segment, flip), key), 'undecryptable', segment);
      await refused(
        compactDecrypt(
          edit(jwe, 'protected header', (text) => `${text.slice(0, -1)}R`),
          key,
        ),
        'malformed',
      );
    });
  }
});

/**
 * The vectors lie beside the repository and are not part of it.
 * Elsewhere, on GitHub too, a test goes without them; CI of the maintainers may not.
 */
const folder = join(root, '../shared/vectors');
const options = {
  skip:
    existsSync(folder) || (process.env.CI && !process.env.GITHUB_ACTIONS)
      ? false
      : 'the vectors are not beside the repository',
};

interface OaepVector {
  id: string;
  keySize: number;
  ctBytes: number;
  msgHex: string;
  ctHex: string;
  expectJwe: 'accept' | 'reject';
  jweRejectReason: string | null;
  jwk?: RsaPrivateJwk;
  privateKeyPkcs8Hex?: string;
}
interface JweVector {
  id: string;
  comment: string;
  jwe: string;
  rsa: boolean;
  jwk?: { kty: string; alg?: string };
  expect: Record<'default' | 'optInRsaOaep', 'accept' | 'reject'>;
  expectedPlaintextHex?: string | null;
}
const read = <T>(name: string): T[] => JSON.parse(readFileSync(join(folder, name), 'utf8'));

describe("Wycheproof's RSA-OAEP vectors, each message the CEK of a JWE", options, () => {
  const keyOf = ({ jwk, privateKeyPkcs8Hex = '' }: OaepVector): RsaPrivateJwk =>
    jwk ??
    untyped({
      ...createPrivateKey({ key: Buffer.from(privateKeyPkcs8Hex, 'hex'), type: 'pkcs8', format: 'der' }).export({
        format: 'jwk',
      }),
      alg: 'RSA-OAEP-256',
    });

  it('decide as RFC 7518 §4.3 and §5.3 do', async () => {
    const counts: Record<string, number> = {};
    for (const vector of read<OaepVector>('wycheproof_oaep.json')) {
      const key = keyOf(vector);
      const owner = new JWETokenVerifier({ keys: key });
      const header = { kid: undefined };
      assert.equal((await owner.verifyToken(seal(key, { header }))).sub, 'ada', `${vector.id}: the key itself`);
      // What a careless recipient would take for the CEK: the message of whatever size, for whatever label.
      const token = seal(key, {
        header,
        cek: Buffer.from(vector.msgHex, 'hex'),
        wrap: () => Buffer.from(vector.ctHex, 'hex'),
      });
      if (vector.expectJwe === 'accept') assert.equal((await owner.verifyToken(token)).sub, 'ada', vector.id);
      else
        await refused(
          owner.verifyToken(token),
          vector.ctBytes === vector.keySize / 8 ? 'undecryptable' : 'malformed',
          `${vector.id}: ${vector.jweRejectReason}`,
        );
      const outcome = vector.jweRejectReason?.replace(/ is SHA-1.*/, '') ?? vector.expectJwe;
      counts[outcome] = (counts[outcome] ?? 0) + 1;
    }
    assert.deepEqual(counts, {
      accept: 3,
      'CEK is not 32 bytes': 27,
      'label not empty': 24,
      'OAEP/ciphertext invalid': 57,
      'MGF1 hash': 30,
    });
  });
});

describe("Wycheproof's JWE vectors", options, () => {
  it('for RSA keys are opened or refused as the key and the allow-list say', async () => {
    const counts: Record<string, number> = {};
    for (const { id, comment, jwe, jwk, expect, expectedPlaintextHex } of read<JweVector>('wycheproof_jwe.json').filter(
      ({ rsa }) => rsa,
    )) {
      const usable = jwk?.alg === 'RSA-OAEP' || jwk?.alg === 'RSA-OAEP-256';
      // A key for another algorithm is refused as such; taken for an OAEP key, it still opens nothing made for another.
      if (!usable) keyRefused(() => new JWETokenVerifier({ keys: untyped(jwk) }), 'unsupported', /"alg"/);
      const key: RsaPrivateJwk = untyped(usable ? jwk : { ...jwk, alg: 'RSA-OAEP-256' });
      const about = `${id} ${comment}`;
      if (expect.optInRsaOaep === 'accept') {
        assert.equal(
          Buffer.from((await compactDecrypt(jwe, key)).plaintext).toString('hex'),
          expectedPlaintextHex,
          about,
        );
        const other = { ...key, alg: key.alg === 'RSA-OAEP' ? 'RSA-OAEP-256' : 'RSA-OAEP' };
        await refused(compactDecrypt(jwe, other), 'malformed', about);
      } else await refused(compactDecrypt(jwe, key), 'malformed', about);
      counts[expect.optInRsaOaep] = (counts[expect.optInRsaOaep] ?? 0) + 1;
    }
    assert.equal(counts['accept'], 3);
    assert.ok((counts['reject'] ?? 0) >= 30, JSON.stringify(counts));
  });
  it('for keys of other kinds are refused by any RSA key, and those keys by the import', async () => {
    const key = EXAMPLES[1]?.key ?? assert.fail();
    let refusals = 0;
    for (const { id, comment, jwe, jwk, expect } of read<JweVector>('wycheproof_jwe.json').filter(({ rsa }) => !rsa)) {
      assert.equal(expect.default, 'reject');
      for (const alg of ['RSA-OAEP', 'RSA-OAEP-256'])
        await refused(compactDecrypt(jwe, { ...key, alg }), 'malformed', `${id} ${comment}`);
      if (jwk) keyRefused(() => new JWETokenVerifier({ keys: untyped(jwk) }), 'unsupported', /"kty"/);
      refusals++;
    }
    assert.ok(refusals > 100, `${refusals}`);
  });
});
