// For `node --import`: a server that listens gets a free port instead of the one it asks for, and the parent is told
// which.
import { type AddressInfo, Server } from 'node:net';

const { listen } = Server.prototype;
const listenAnywhere = function (this: Server, asked: unknown, ...rest: unknown[]): Server {
  this.once('listening', () => process.send?.({ port: (this.address() as AddressInfo).port }));
  const free = typeof asked === 'object' && asked !== null ? { ...asked, port: 0 } : 0;
  return Reflect.apply(listen, this, [free, ...rest]);
};
Object.assign(Server.prototype, { listen: listenAnywhere });
