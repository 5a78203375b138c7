// Requests with a known token without a socket, for whoever counts instructions: bench-pipe.js bare|ours COUNT answers
// as many, one after the other, and ends. BENCH_LIBRARY is the URL of another build of the library. It imports no more
// than it needs: what is loaded counts, too.
import { createServer, type RequestListener } from 'node:http';
import { Duplex } from 'node:stream';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { ServerInput } from './bench-server.js';

const { keys, token } = JSON.parse(process.env['BENCH_INPUT'] ?? '') as ServerInput;
const library = process.env['BENCH_LIBRARY'] ?? 'mcp-auth-middleware';
const { getUser, JWETokenVerifier, withAuth }: typeof import('mcp-auth-middleware') = await import(library);

const bare: RequestListener = (_req, res) => {
  res.end('hello, alice');
};
const greet: RequestListener = (_req, res) => {
  res.end(`hello, ${getUser().sub}`);
};
const ours = () => withAuth(greet, { verifier: new JWETokenVerifier({ keys: JSON.parse(keys) }) });

const head = ['POST /mcp HTTP/1.1', 'Host: localhost', `Authorization: Bearer ${token}`, 'Content-Length: 0'];
const types = ['Content-Type: application/json', 'Accept: application/json, text/event-stream'];
const request = Buffer.from([...head, ...types, '', ''].join('\r\n'));

const nothing = (): void => {};
let answered = (_status: string): void => {};
const connection = new Duplex({
  read: nothing,
  write(chunk: Buffer, _encoding, done) {
    answered(chunk.toString('latin1', 0, 15));
    done();
  },
});
const socket = Object.assign(connection, { setTimeout: nothing, setNoDelay: nothing, setKeepAlive: nothing });
createServer(process.argv[2] === 'bare' ? bare : ours()).emit('connection', socket);

for (let sent = 0; sent < Number(process.argv[3]); sent += 1) {
  const status = await new Promise<string>((resolve) => {
    answered = resolve;
    socket.push(request);
  });
  if (status !== 'HTTP/1.1 200 OK') throw new Error(`a known token was answered ${status}`);
  await nextTurn(); // as from a socket: not all in the one turn of whatever answered the first
}
process.exit();
