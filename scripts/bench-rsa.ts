// One core's worth of RSA for the bench, in a worker thread: private operations/s of the OpenSSL that Node links.
import { constants, createPrivateKey, privateDecrypt, publicEncrypt } from 'node:crypto';
import { parentPort, workerData } from 'node:worker_threads';

const { pem, seconds } = workerData as { pem: string; seconds: number };
const key = createPrivateKey(pem);
const padding = { key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' };
const sealed = publicEncrypt(padding, Buffer.alloc(32));
privateDecrypt(padding, sealed);
let count = 0;
const start = performance.now();
while (performance.now() - start < seconds * 1000) {
  privateDecrypt(padding, sealed);
  count += 1;
}
parentPort?.postMessage(count / ((performance.now() - start) / 1000));
