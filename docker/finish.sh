#!/bin/sh
# Part of the image build: make the environment smaller, and quick to start where nothing can be written.
set -eu
cd /opt/plmsae/lib/python3*/site-packages
# Test programs, and the headers that only a compiler reads.
rm -rf torch/test torch/include torch/bin/*Test torch/bin/test_* torch/bin/protoc* pandas/tests pyarrow/include pyarrow/tests
# Byte code without time stamps: valid whatever a copy does to the times, and the same in every build.
# The folder left out holds files in the syntax of other Python versions.
/opt/plmsae/bin/python -m compileall -q -j 0 -x /torch/testing/_internal/ --invalidation-mode unchecked-hash .
