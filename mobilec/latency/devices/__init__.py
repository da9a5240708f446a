"""Where artefacts can be timed: this machine, a board over ssh, a phone over adb, a pool over TVM's RPC, Core ML."""
