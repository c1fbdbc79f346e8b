"""Every rule of the job: an example that breaks it, and the nearest one that keeps it.

Checked in Python by tests/unit and against an API server by tests/cluster.
"""

from typing import NamedTuple

TWO_TOWER = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {name: retrieval}
spec:
  model: {type: TwoTower, twoTower: {}}
  features:
    - {name: user_id, kind: Categorical, side: User, cardinality: 10}
    - {name: item_id, kind: Categorical, side: Item, cardinality: 20}
    - {name: age, kind: Dense, side: User}
    - {name: history, kind: Sequence, side: User, of: item_id, maxLength: 5}
  data: {train: {uri: train}, validation: {uri: validation}}
"""

RANKING = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {name: ranking}
spec:
  model: {type: DLRM, dlrm: {embeddingDim: 16}}
  features:
    - {name: price, kind: Dense}
    - {name: brand, kind: Categorical, cardinality: 10}
    - {name: shop, kind: Categorical, cardinality: 10}
    - {name: tags, kind: Sequence, cardinality: 30, maxLength: 4}
  labels: [{name: click, task: Binary}]
  data: {train: {uri: train}, validation: {uri: validation}}
"""


MIND = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {name: interests}
spec:
  model: {type: MIND, mind: {}}
  features:
    - {name: user_id, kind: Categorical, side: None, cardinality: 10}
    - {name: item_id, kind: Categorical, side: Item, cardinality: 20}
    - {name: history, kind: Sequence, side: User, of: item_id, maxLength: 5}
    - {name: city, kind: Categorical, side: User, cardinality: 20}
  data: {train: {uri: train}, validation: {uri: validation}}
"""


class Case(NamedTuple):
    job: str
    broken: str
    """Overrides that break the rule, separated by blanks around a semicolon."""
    path: str
    message: str
    kept: str
    """Overrides that keep it."""


CASES = {
    # One feature
    "categorical needs cardinality": Case(
        RANKING,
        "features[brand].cardinality=",
        "spec.features[1].cardinality",
        "is required for a Categorical feature",
        "features[brand].cardinality=1",
    ),
    "sequence of its own needs cardinality": Case(
        RANKING,
        "features[tags].cardinality=",
        "spec.features[3].cardinality",
        "is required for a Sequence feature",
        "features[tags].cardinality= ; features[tags].of=brand",
    ),
    "sequence needs maxLength": Case(
        TWO_TOWER,
        "features[history].maxLength=",
        "spec.features[3].maxLength",
        "is required for a Sequence feature",
        "features[history].maxLength=1",
    ),
    "minCount is for Vocabulary": Case(
        RANKING,
        "features[brand].minCount=2",
        "spec.features[1].minCount",
        "is only for encoding Vocabulary",
        "features[brand].minCount=2 ; features[brand].encoding=Vocabulary",
    ),
    "unknown is not for Hashing": Case(
        RANKING,
        "features[brand].unknown=Refuse ; features[brand].encoding=Hashing",
        "spec.features[1].unknown",
        "is not for encoding Hashing",
        "features[brand].unknown=Refuse ; features[brand].encoding=Vocabulary",
    ),
    "boundaries are for Bucket": Case(
        RANKING,
        "features[price].boundaries=[1, 2] ; features[price].transform=Log",
        "spec.features[0].boundaries",
        "is only for transform Bucket",
        "features[price].boundaries=[1, 2] ; features[price].transform=Bucket",
    ),
    "numBuckets is for Bucket": Case(
        RANKING,
        "features[price].numBuckets=4",
        "spec.features[0].numBuckets",
        "is only for transform Bucket",
        "features[price].numBuckets=4 ; features[price].transform=Bucket",
    ),
    "boundaries increase": Case(
        RANKING,
        "features[price].transform=Bucket ; features[price].boundaries=[1, 2, 2]",
        "spec.features[0].boundaries",
        "must be one or more increasing numbers",
        "features[price].transform=Bucket ; features[price].boundaries=[1, 2, 2.5]",
    ),
    "boundaries are not empty": Case(
        RANKING,
        "features[price].transform=Bucket ; features[price].boundaries=[]",
        "spec.features[0].boundaries",
        "must be one or more increasing numbers",
        "features[price].transform=Bucket ; features[price].boundaries=[0]",
    ),
    "boundaries or numBuckets, not both": Case(
        RANKING,
        "features[price].transform=Bucket ; features[price].boundaries=[1] ; features[price].numBuckets=2",
        "spec.features[0].numBuckets",
        "must be left out when boundaries are given",
        "features[price].transform=Bucket ; features[price].numBuckets=2",
    ),
    # One label
    "classes need a number": Case(
        RANKING,
        "labels[click].task=MultiClass",
        "spec.labels[0].numClasses",
        "is required for task MultiClass",
        "labels[click].task=MultiClass ; labels[click].numClasses=3",
    ),
    "several labels in one need a number": Case(
        RANKING,
        "labels[click].task=MultiLabel",
        "spec.labels[0].numClasses",
        "is required for task MultiLabel",
        "labels[click].task=MultiLabel ; labels[click].numClasses=3",
    ),
    "no classes for Binary": Case(
        RANKING,
        "labels[click].numClasses=2",
        "spec.labels[0].numClasses",
        "is not for task Binary",
        "labels[click].task=Binary",
    ),
    # The model's section
    "the named section is there": Case(
        RANKING,
        "model.dlrm=",
        "spec.model.dlrm",
        "is required for type DLRM; {} takes the defaults",
        "model.dlrm={}",
    ),
    "no other section is there": Case(
        RANKING,
        "model.deepFm={}",
        "spec.model.deepFm",
        "must be left out: type is DLRM",
        "model={type: DeepFM, deepFm: {}}",
    ),
    # Raw input
    "raw input has a uri": Case(
        RANKING,
        "data.source.format=Parquet",
        "spec.data.source.uri",
        "is required for format Parquet",
        "data.source.format=Parquet ; data.source.uri=raw",
    ),
    "synthetic rows have no uri": Case(
        RANKING,
        "data.source.format=Synthetic ; data.source.uri=raw",
        "spec.data.source.uri",
        "must be left out: Synthetic makes its rows",
        "data.source.format=Synthetic ; data.source.rows=5",
    ),
    "synthetic rows have no validation input": Case(
        RANKING,
        "data.source.format=Synthetic ; data.source.validationUri=raw",
        "spec.data.source.validationUri",
        "must be left out",
        "data.source.format=Synthetic",
    ),
    "synthetic rows have no validation share": Case(
        RANKING,
        "data.source.format=Synthetic ; data.source.validationFraction=0.5",
        "spec.data.source.validationFraction",
        "must be left out",
        "data.source={format: Parquet, uri: raw, validationFraction: 0.5}",
    ),
    "rows are for Synthetic": Case(
        RANKING,
        "data.source={format: Parquet, uri: raw, rows: 5}",
        "spec.data.source.rows",
        "is only for format Synthetic",
        "data.source={format: Synthetic, rows: 5}",
    ),
    "delimiter is for Triples": Case(
        RANKING,
        'data.source={format: Parquet, uri: raw, delimiter: ";"}',
        "spec.data.source.delimiter",
        "is only for format Triples",
        'data.source={format: Triples, uri: raw, delimiter: ";"}',
    ),
    "columns are for Triples and Parquet": Case(
        RANKING,
        "data.source={format: Criteo, uri: raw, columns: {click: c0}}",
        "spec.data.source.columns",
        "is only for formats Triples and Parquet",
        "data.source={format: Parquet, uri: raw, columns: {click: c0}}",
    ),
    "columns name features or labels": Case(
        RANKING,
        "data.source={format: Parquet, uri: raw, columns: {clicks: c0}}",
        "spec.data.source.columns.clicks",
        "must be a feature or a label",
        "data.source={format: Parquet, uri: raw, columns: {click: c0, brand: c1}}",
    ),
    "validation input or a share, not both": Case(
        RANKING,
        "data.source={format: Parquet, uri: raw, validationUri: raw2, validationFraction: 0.5}",
        "spec.data.source.validationFraction",
        "must be left out: validationUri is given",
        "data.source={format: Parquet, uri: raw, validationUri: raw2}",
    ),
    "validation input needs shards to go to": Case(
        RANKING,
        "data.source={format: Parquet, uri: raw, validationUri: raw2} ; data.validation=",
        "spec.data.validation",
        "is required: source.validationUri is converted to it",
        "data.source={format: Parquet, uri: raw} ; data.validation=",
    ),
    "interactions give a user and an item": Case(
        RANKING,
        "data.source={format: Interactions, uri: raw}",
        "spec.features",
        "must have a Categorical feature user_id: Interactions gives user and item",
        "data.source={format: Interactions, uri: raw} ; model.userId=brand ; model.itemId=shop",
    ),
    "sequences give a user and an item": Case(
        RANKING,
        "data.source={format: Sequences, uri: raw} ; model.userId=brand",
        "spec.features",
        "must have a Categorical feature item_id: Sequences gives user and item",
        "data.source={format: Sequences, uri: raw} ; model.userId=brand ; model.itemId=shop",
    ),
    # Optimizers, workers
    "SGD has no weight decay": Case(
        RANKING,
        "training.optimizers.embedding={type: SGD, weightDecay: 0.1}",
        "spec.training.optimizers.embedding.weightDecay",
        "must be 0 with SGD",
        "training.optimizers.embedding={type: SGD, weightDecay: 0}",
    ),
    "Adagrad has no weight decay": Case(
        RANKING,
        "training.optimizers.embedding={type: Adagrad, weightDecay: 0.1}",
        "spec.training.optimizers.embedding.weightDecay",
        "must be 0 with Adagrad",
        "training.optimizers.embedding={type: RowWiseAdagrad, weightDecay: 0.1}",
    ),
    "the elastic range is not empty": Case(
        RANKING,
        "workers={replicas: 2, elastic: {minReplicas: 3, maxReplicas: 2}}",
        "spec.workers.elastic.minReplicas",
        "must be at most maxReplicas",
        "workers={replicas: 2, elastic: {minReplicas: 2, maxReplicas: 2}}",
    ),
    "replicas are in the elastic range": Case(
        RANKING,
        "workers={replicas: 5, elastic: {minReplicas: 1, maxReplicas: 4}}",
        "spec.workers.replicas",
        "must be between elastic.minReplicas and elastic.maxReplicas",
        "workers={replicas: 4, elastic: {minReplicas: 1, maxReplicas: 4}}",
    ),
    # Between the parts
    "names are unique among features": Case(
        RANKING,
        "features[brand].name=shop",
        "spec.features[1].name",
        "must be unique among features and labels",
        "features[brand].name=make",
    ),
    "labels are not named as features": Case(
        RANKING,
        "labels[click].name=price",
        "spec.labels[0].name",
        "must be unique among features and labels",
        "labels[click].name=bought",
    ),
    "a sequence is of a categorical": Case(
        TWO_TOWER,
        "features[history].of=age",
        "spec.features[3].of",
        "must name a Categorical feature of this job",
        "features[history].of=user_id",
    ),
    "a shared table has one cardinality": Case(
        RANKING,
        "features[shop].table=brand ; features[shop].cardinality=11",
        "spec.features[2].table",
        "is shared, so cardinality must be the same in all features of the table",
        "features[shop].table=brand",
    ),
    "a shared table has one encoding": Case(
        RANKING,
        "features[shop].table=brand ; features[shop].encoding=Hashing",
        "spec.features[2].table",
        "is shared, so encoding must be the same in all features of the table",
        "features[shop].table=brand ; features[shop].encoding=Hashing ; features[brand].encoding=Hashing",
    ),
    "a shared table has one width": Case(
        RANKING,
        "features[shop].table=brand ; features[shop].embeddingDim=16",
        "spec.features[2].table",
        "is shared, so embeddingDim must be the same in all features of the table",
        "features[shop].table=brand ; features[shop].embeddingDim=16 ; features[brand].embeddingDim=16",
    ),
    "a table has one pooling": Case(
        RANKING,
        "features[3]={name: a, kind: Sequence, of: brand, maxLength: 2, pooling: Sum}"
        " ; features[2]={name: b, kind: Sequence, of: brand, maxLength: 2}",
        "spec.features[3].pooling",
        "must be the same in all features of the table",
        "features[3]={name: a, kind: Sequence, of: brand, maxLength: 2, pooling: Mean}"
        " ; features[2]={name: b, kind: Sequence, of: brand, maxLength: 2}",
    ),
    "constraints are for tables": Case(
        TWO_TOWER,
        "sharding.constraints=[{table: history}]",
        "spec.sharding.constraints[0].table",
        "must be an embedding table: the `table`, or else the name, of a Categorical feature",
        "sharding.constraints=[{table: item_id, types: [RowWise]}]",
    ),
    "TwoTower needs sides": Case(
        TWO_TOWER,
        "features[age].side=",
        "spec.features[2].side",
        "is required for TwoTower: side User or Item",
        "features[age].side=Item",
    ),
    "userId names a feature": Case(
        TWO_TOWER,
        "model.userId=visitor",
        "spec.model.userId",
        "must name a Categorical feature of side User; there is none called visitor",
        "model.userId=visitor ; features[user_id].name=visitor",
    ),
    "userId is of the user's side": Case(
        TWO_TOWER,
        "model.userId=item_id",
        "spec.model.userId",
        "must name a Categorical feature of side User; there is none called item_id",
        "model.userId=user_id",
    ),
    "itemId is categorical": Case(
        TWO_TOWER,
        "model.itemId=history",
        "spec.model.itemId",
        "must name a Categorical feature of side Item; there is none called history",
        "model.itemId=item_id",
    ),
    "side None is for the user's id": Case(
        TWO_TOWER,
        "features[age].side=None",
        "spec.features[2].side",
        "must have side User or Item: side None is for user_id, model.userId",
        "features[user_id].side=None",
    ),
    "side None is for retrieval models": Case(
        RANKING,
        "features[price].side=None",
        "spec.features[0].side",
        "must be left out: side None is for retrieval models, not DLRM",
        "features[price].side=User",
    ),
    "a user is something": Case(
        TWO_TOWER,
        "features[user_id].side=None ; features[age].side=Item ; features[history].side=Item",
        "spec.features",
        "must have a feature of side User",
        "features[user_id].side=None ; features[age].side=Item",
    ),
    "MIND's history is named": Case(
        MIND,
        "model.mind.history=clicks",
        "spec.model.mind.history",
        "must name a Sequence feature `of: item_id`, side User; there is none called ",
        "model.mind.history=clicks ; features[history].name=clicks",
    ),
    "MIND's history is a sequence": Case(
        MIND,
        "model.mind.history=city",
        "spec.model.mind.history",
        "must name a Sequence feature `of: item_id`, side User; there is none called ",
        "model.mind.history=history",
    ),
    "MIND's history is of the item": Case(
        MIND,
        "features[history].of=city",
        "spec.model.mind.history",
        "must name a Sequence feature `of: item_id`, side User; there is none called ",
        "features[history].of=item_id",
    ),
    "MIND's items are their embeddings": Case(
        MIND,
        "features[city].side=Item",
        "spec.features[3].side",
        "must have side User: an item of MIND is its embedding alone",
        "features[city].side=User",
    ),
    "MIND has one width": Case(
        MIND,
        "features[city].embeddingDim=8",
        "spec.features[3].embeddingDim",
        "must be the model's embeddingDim or left out: MIND needs one width",
        "features[city].embeddingDim=8 ; model.mind.embeddingDim=8",
    ),
    "MIND has one label at most": Case(
        MIND,
        "labels=[{name: a, task: Binary}, {name: b, task: Binary}]",
        "spec.labels",
        "must be at most one Binary label for MIND",
        "labels=[{name: a, task: Binary}]",
    ),
    "TwoTower has one label at most": Case(
        TWO_TOWER,
        "labels=[{name: a, task: Binary}, {name: b, task: Binary}]",
        "spec.labels",
        "must be at most one Binary label for TwoTower",
        "labels=[{name: a, task: Binary}]",
    ),
    "TwoTower's label is binary": Case(
        TWO_TOWER,
        "labels=[{name: a, task: Regression}]",
        "spec.labels",
        "must be at most one Binary label for TwoTower",
        "labels=[]",
    ),
    "BinaryCrossEntropy needs a label": Case(
        TWO_TOWER,
        "model.twoTower.loss=BinaryCrossEntropy",
        "spec.labels",
        "must have one Binary label: twoTower.loss is BinaryCrossEntropy",
        "model.twoTower.loss=BinaryCrossEntropy ; labels=[{name: a, task: Binary}]",
    ),
    "ranking models have embeddings": Case(
        RANKING,
        "features=[{name: price, kind: Dense}]",
        "spec.features",
        "must have at least one Categorical or Sequence feature for DLRM",
        "features=[{name: tags, kind: Sequence, cardinality: 3, maxLength: 2}]",
    ),
    "ranking models have one width": Case(
        RANKING,
        "features[brand].embeddingDim=8",
        "spec.features[1].embeddingDim",
        "must be the model's embeddingDim or left out: DLRM needs one width",
        "features[brand].embeddingDim=16",
    ),
    "ranking models have labels": Case(
        RANKING,
        "labels=[]",
        "spec.labels",
        "must have at least one label for DLRM",
        "labels=[{name: a, task: Regression}]",
    ),
    "ranking metrics need a retrieval model": Case(
        RANKING,
        "evaluation.metrics=[auc, recall@20]",
        "spec.evaluation.metrics[1]",
        "must be none of recall, ",
        "evaluation.metrics=[auc, log_loss]",
    ),
    "pointwise metrics need a label of their task": Case(
        RANKING,
        "evaluation.metrics=[accuracy]",
        "spec.evaluation.metrics[0]",
        "must go with a label of task MultiClass: accuracy",
        "evaluation.metrics=[accuracy] ; labels=[{name: a, task: MultiClass, numClasses: 2}]",
    ),
    "early stopping is on a metric of the evaluation": Case(
        RANKING,
        "evaluation.metrics=[auc] ; training.earlyStopping.metric=log_loss",
        "spec.training.earlyStopping.metric",
        "must be one of evaluation.metrics",
        "training.earlyStopping.metric=log_loss",
    ),
    "early stopping needs validation data": Case(
        TWO_TOWER,
        "data.validation= ; training.earlyStopping.metric=ndcg@20",
        "spec.data.validation",
        "is required: training.earlyStopping evaluates on it",
        "training.earlyStopping.metric=ndcg@20",
    ),
    "metrics need validation data": Case(
        TWO_TOWER,
        "data.validation= ; evaluation.metrics=[mrr]",
        "spec.data.validation",
        "is required: evaluation.metrics are measured on it",
        "data.validation=",
    ),
    "the tracking server's address holds no password": Case(
        TWO_TOWER,
        "tracking.mlflow.trackingUri=https://me:secret@mlflow:5000",
        "spec.tracking.mlflow.trackingUri",
        "must hold no user or password: name a Secret by credentialsSecretRef",
        "tracking.mlflow.trackingUri=https://mlflow:5000/@team",
    ),
    "the storage's address holds no password": Case(
        TWO_TOWER,
        "data.storage.endpointUrl=http://key:secret@minio:9000",
        "spec.data.storage.endpointUrl",
        "must hold no user or password: name a Secret by credentialsSecretRef",
        "data.storage.endpointUrl=http://minio:9000",
    ),
    "the index's address holds no password": Case(
        TWO_TOWER,
        "publish.index={type: Milvus, uri: 'http://root:Milvus@milvus:19530'}",
        "spec.publish.index.uri",
        "must hold no user or password: they come from the environment variable MILVUS_TOKEN",
        "publish.index={type: Milvus, uri: 'http://milvus:19530'}",
    ),
    "an index is for retrieval models": Case(
        RANKING,
        "publish.index={type: Faiss, uri: index}",
        "spec.publish.index",
        "is only for retrieval models, not DLRM",
        "publish.index=",
    ),
}

# A field that is only for some kinds of feature: the feature of another kind that has it, the value, the kinds.
FIELDS_OF_OTHER_KINDS = [
    *(
        ("price", field, value, "is not for a Dense feature, only for Categorical and Sequence")
        for field, value in {
            "encoding": "Identity",
            "cardinality": "5",
            "minCount": "1",
            "unknown": "Refuse",
            "embeddingDim": "16",
            "table": "t",
        }.items()
    ),
    *(
        ("brand", field, value, "is not for a Categorical feature, only for Sequence")
        for field, value in {"of": "shop", "maxLength": "3", "padding": "Left", "pooling": "Sum"}.items()
    ),
    *(
        ("brand", field, value, "is not for a Categorical feature, only for Dense")
        for field, value in {
            "transform": "Log",
            "boundaries": "[1]",
            "numBuckets": "2",
            "fillMissing": "0",
        }.items()
    ),
]

FIELDS_THAT_OF_REPLACES = {
    "encoding": "Identity",
    "cardinality": "20",
    "minCount": "1",
    "unknown": "Refuse",
    "embeddingDim": "64",
    "table": "item_id",
}
